"""What Vulkan and CUDA share: capabilities, lowering, schedules."""
