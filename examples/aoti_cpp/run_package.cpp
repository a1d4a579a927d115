// Runs a package that padst_fx.export_aoti made, without Python and without padst_fx:
//
//   run_package model.pt2 inputs.pt outputs.pt
//
// inputs.pt is a list of tensors as torch.save writes it; torch.load reads a tuple from outputs.pt.
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

std::vector<at::Tensor> read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(std::string("cannot read ") + path);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const c10::IValue list = torch::jit::pickle_load(bytes);
  std::vector<at::Tensor> tensors;
  for (const c10::IValue& item : list.toListRef()) tensors.push_back(item.toTensor());
  return tensors;
}

void write(const char* path, const std::vector<at::Tensor>& tensors) {
  const std::vector<c10::IValue> items(tensors.begin(), tensors.end());
  const std::vector<char> bytes = torch::jit::pickle_save(c10::ivalue::Tuple::create(items));
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file) throw std::runtime_error(std::string("cannot write ") + path);
}

int main(int count, char** arguments) try {
  if (count != 4) throw std::runtime_error("usage: run_package model.pt2 inputs.pt outputs.pt");
  torch::inductor::AOTIModelPackageLoader model(arguments[1]);
  write(arguments[3], model.run(read(arguments[2])));
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
