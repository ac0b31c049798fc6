"""What every other package stands on: processes, files, hashes, console, errors and memory."""
