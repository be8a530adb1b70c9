"""What is drawn and written about a run: audit of the labels, plots, videos."""
