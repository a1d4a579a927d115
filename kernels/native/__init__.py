"""What the C++ kernels share, and how they are built and loaded on the user's machine."""
