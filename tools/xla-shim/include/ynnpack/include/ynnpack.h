// Stands in for YNNPACK's header, of which XLA's headers for saving programs need these names. None of the functions is called.
#pragma once

// Tells the client's source that these are TensorFlow's headers of XLA with the stand-ins of this folder.
#define VNCA_XLA_SHIM

typedef struct ynn_runtime *ynn_runtime_t;
typedef struct ynn_subgraph *ynn_subgraph_t;
typedef struct ynn_threadpool *ynn_threadpool_t;

enum ynn_status {
  ynn_status_success,
  ynn_status_deprecated,
  ynn_status_error,
  ynn_status_invalid_parameter,
  ynn_status_unsupported_parameter,
};

enum ynn_type { ynn_type_invalid };

extern "C" {
void ynn_delete_runtime(ynn_runtime_t runtime);
void ynn_delete_subgraph(ynn_subgraph_t subgraph);
void ynn_delete_threadpool(ynn_threadpool_t threadpool);
}
