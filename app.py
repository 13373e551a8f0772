"""Serve a web page that draws pictures from a checkpoint, on this machine alone unless --host says otherwise."""

from sd.entry import serve

if __name__ == "__main__":
    serve()
