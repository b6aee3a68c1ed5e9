"""The Vulkan target: GLSL from lowered TIR, SPIR-V from that, a runtime of our own that launches it."""
