"""Evaluation of detectors and classifiers, and measurements of nets.

Detectors: `classes` maps labels to category ids by name, `results` writes detections in COCO's result format.
`ground_truth` and `detections` turn annotations and results into columns, `backends` chooses the library that matches
them (`interface` is what every backend implements, `self_check` compares two), `scores` computes COCO's metrics and
`table` formats them.
Classifiers: `multi_crop` tests with several crops, scales and reflections, `topk` computes and formats accuracies.
Nets: `counts` gives parameters and multiply-adds, `layer_statistics` measures layer responses and gradients.
"""
