"""Weight files: reading and writing them, renaming their keys, identifying their source, and loading them strictly.

`read` opens files, `catalog` lists the published ones, `keymaps` renames keys, `sources` identifies where weights come
from, `certificate` checks the files that this project writes, and `load` copies tensors into a model. Nothing here
imports a network class; `resnet_backbone.build` brings nets and weights together.
"""
