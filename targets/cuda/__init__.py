"""The CUDA target: machine code for stated architectures, without a toolkit or a GPU on the compiling machine."""
