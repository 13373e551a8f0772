"""`python -m sd.data.duplicates LIST`"""

from sd.entry import duplicates

if __name__ == "__main__":
    duplicates()
