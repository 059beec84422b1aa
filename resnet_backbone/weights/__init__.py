"""Weight files: reading and writing them, renaming their keys, telling their source, and loading them strictly.

`read` opens files, `catalog` knows the published ones, `keymaps` renames keys, `sources` tells whose weights they are,
`certificate` checks the files that this project writes, and `load` copies tensors into a model. Nothing here knows a
network class; `resnet_backbone.build` brings nets and weights together.
"""
