#define JIT 1
#define JIT_cpu 1
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <iomanip>
#include <iostream>
#include <map>
#include <mutex>
#include <queue>
#include <set>
#include <sstream>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <var.h>
#include <op.h>
#include <fused_op.h>
#include <graph.h>
#include <executor.h>
#include <ops/op_register.h>
