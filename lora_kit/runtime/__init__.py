"""Foundation of all other packages: processes, files, hashes, console, errors and memory."""
