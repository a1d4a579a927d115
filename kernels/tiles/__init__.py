"""Which tile each Triton kernel runs with: calculated for any shape, or measured on a device."""
