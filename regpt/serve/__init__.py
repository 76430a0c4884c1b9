"""`regpt serve`: an HTTP server that shows the runs of a folder in a browser."""
