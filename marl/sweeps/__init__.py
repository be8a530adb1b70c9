"""Many runs from one file: which settings are tried, the processes, and the table."""
