"""C++ sources of the Vulkan runtime library; `greencc.runtime.vulkan_build` compiles them."""
