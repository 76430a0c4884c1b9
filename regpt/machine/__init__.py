"""The machine of a process: environment variables, device, precision, threads, memory."""
