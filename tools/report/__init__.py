"""What a person looks at: drawn detections, pages of them, loss curves and tables about the data."""
