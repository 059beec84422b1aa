"""Reports: drawn detections and contact sheets, plots of runs and of nets, and tables of data sets and weights."""
