#pragma once

// The parts of LibTorch that this project uses: tensors, their functions, autograd and its guards.
// <torch/torch.h> brings modules, optimizers and data loaders too, and costs every file 2.7 s more.

#include <torch/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>
