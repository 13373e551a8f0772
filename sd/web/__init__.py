"""The web page: the page's process, its client, and the process that draws."""
