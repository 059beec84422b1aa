"""Detections to COCO results, and COCO results to scores."""
