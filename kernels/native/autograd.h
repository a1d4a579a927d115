// Gradients of the projection ops on the CPU.
#pragma once

namespace torch {
class Library;
}

namespace padst {

void register_autograd(torch::Library& autograd);

}  // namespace padst
