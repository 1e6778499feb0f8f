// sidewinder: the node with an interpreter of its own.
#include "cnode/main/program.hpp"

int main(int argc, char** argv) { return node_main::program(argc, argv, node_main::Python::kOurs); }
