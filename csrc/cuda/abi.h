// SPDX-License-Identifier: Apache-2.0
//
// What the native module and a back end in a library of its own know of each other; C, so that either
// may come from another compiler.
//
// A library exports weft_backend_v1 alone. Calls return 0, or 1 + a weft::ErrorCode with a text in
// *error, and leave the thread's device as it was. No exception and no ownership crosses: arrays are
// host memory, borrowed for the call. Structs
// begin with their size where they may grow; within ABI 1 they grow at their end only. A resident may
// be used by several threads at once.
#ifndef WEFT_CUDA_ABI_H
#define WEFT_CUDA_ABI_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define WEFT_BACKEND_ABI 1u

/* NOLINTBEGIN(modernize-*): C */

typedef struct weft_error {
  char text[512];
} weft_error;

/* What a back end finds on this machine. */
enum weft_state {
  WEFT_READY = 0, /* at least one device */
  WEFT_NO_DRIVER = 1,
  WEFT_OLD_DRIVER = 2, /* older than the back end needs */
  WEFT_NO_DEVICE = 3,
  WEFT_DRIVER_ERROR = 4 /* there, but does not start */
};

typedef struct weft_probe {
  uint32_t struct_size;
  int32_t state;
  int32_t n_devices;
  char text[512]; /* for states but WEFT_READY: why, for the user */
} weft_probe;

typedef struct weft_device {
  uint32_t struct_size;
  int32_t major, minor; /* compute capability */
  uint64_t free_bytes, total_bytes;
  char name[256];
} weft_device;

/* What the codes of all segments are relative to: see quantizer/codec.h. */
typedef struct weft_codec {
  uint32_t struct_size;
  uint32_t nbits;
  uint32_t dim; /* padded: a multiple of 32 */
  uint32_t n_coarse, n_fine;
  const int8_t* fine;            /* [n_fine][dim] */
  const uint32_t* child_offsets; /* [n_coarse + 1] */
  float multiplier_least, multiplier_step;
  const int8_t* coarse; /* [n_coarse][dim]; null: for scans alone */
} weft_codec;

/* Arrays of a segment as its file holds them: see docs/format.md. */
typedef struct weft_segment {
  uint32_t struct_size;
  uint32_t n_docs;
  uint64_t n_tokens;
  const uint64_t* offsets; /* [n_docs + 1] */
  const uint16_t *parents, *steps;
  const uint8_t *children, *multipliers;
  const uint8_t* codes;         /* [n_tokens][dim * nbits / 8] */
  const uint32_t* ranks;        /* [n_docs]: place of the id among those of all segments */
  const uint64_t* list_offsets; /* [n_fine + 1]; this and what follows: unused for scans alone */
  const uint8_t* postings;      /* [list_offsets[n_fine]] numbers of ... */
  uint32_t posting_width;       /* ... bytes */
} weft_segment;

/* A query in rotated space: row = s8 * scale. */
typedef struct weft_query {
  uint32_t struct_size;
  uint32_t n_tokens;
  const int8_t* rows;         /* [n_tokens][dim] */
  uint32_t base_shift;        /* a centroid's score is dot >> base_shift ... */
  float base_unit, code_unit; /* ... times base_unit; that of the doubled levels, times code_unit */
} weft_query;

/* Documents are numbered through the segments, each beginning at a multiple of 64. */
typedef struct weft_scan_args {
  uint32_t struct_size;
  uint32_t n_queries;
  const weft_query* queries;
  uint64_t k;
  const uint64_t* allow;  /* one bit per document, in the numbering above; null: all */
  int32_t (*poll)(void*); /* null, or asked now and then: other than 0 ends the call */
  void* poll_data;
  uint32_t* docs;   /* [n_queries][k] best first: score descending, rank ascending */
  float* scores;    /* [n_queries][k] */
  uint64_t* counts; /* [n_queries]: how many there are; documents without a score are none */
} weft_scan_args;

/* A query for a pruned search: see search/probe.h. Scores of centroids are (dot >> shift), and their
 * table entries, 0..255, those times factor / 2^15. */
typedef struct weft_search_query {
  uint32_t struct_size;
  uint32_t n_merged;
  weft_query query;
  const uint32_t *lanes, *weights; /* [n_merged] tokens that stand for themselves and their like */
  uint32_t coarse_shift;
  int32_t coarse_factor, fine_factor; /* the shift of fine ones is query.base_shift */
  uint32_t gain_shift;
} weft_search_query;

/* What a pruned search came to. */
typedef struct weft_search_counts {
  uint64_t postings, gathered, skimmed, refined;
  uint64_t found; /* documents with a score, of `keep` */
} weft_search_counts;

typedef struct weft_search_args {
  uint32_t struct_size;
  uint32_t n_queries;
  const weft_search_query* queries;
  uint32_t nprobe, budget, ncandidates, nskim, nrefine; /* see search/params.h */
  uint32_t floor_share;                                 /* the floor, times 256 */
  uint64_t keep;
  const uint64_t* allow; /* as for a scan */
  uint32_t reads_on;     /* 1: until enough postings of documents in `allow` were read */
  int32_t (*poll)(void*);
  void* poll_data;
  uint32_t* docs; /* [n_queries][keep], as from a scan */
  float* scores;
  weft_search_counts* counts; /* [n_queries] */
} weft_search_args;

typedef struct weft_resident weft_resident;

/* Centroids to compare rows of bytes with: see quantizer/nearest.h. Biases are added to dots. */
typedef struct weft_nearest {
  uint32_t struct_size;
  uint32_t dim;             /* padded: a multiple of 32 */
  uint32_t n;               /* 1..65,536 */
  uint32_t n_groups;        /* 1: rows are compared with all; else a multiple of 4, at most 512 */
  uint32_t shift;           /* dot + bias, shifted by it, fits 16 bits */
  const int8_t* rows;       /* [n][dim], those of a group together */
  const int32_t* bias;      /* [n] */
  const uint32_t* numbers;  /* [n]: as the caller knows them, below n */
  const uint32_t* starts;   /* [n_groups + 1] */
  const int8_t* means;      /* [n_groups][dim] of the groups */
  const int32_t* mean_bias; /* [n_groups] */
  uint32_t mean_shifts[4];  /* of each quarter of the groups */
} weft_nearest;

/* How rows become codes: see quantizer/codec.h. The nearest centroids are those of the cells. */
typedef struct weft_encoding {
  uint32_t struct_size;
  uint32_t nbits;
  uint32_t row_dim; /* of the rows; padded it is that of the centroids */
  uint32_t n_clips;
  const float* factors;          /* [2][dim]: of the rotation's rounds */
  const int8_t* fine;            /* [n_fine][dim] */
  const int32_t* fine_bias;      /* [n_fine] */
  const uint32_t* child_offsets; /* [cells + 1] */
  const float* clips;            /* [n_clips]: factors of the widest element */
  float token_scale;             /* steps of the centroids' grid per unit of length */
  float fine_scale;              /* that of a fine centroid's step */
  float widening;                /* of a step that a second plane goes with */
  float multiplier_least, multiplier_step;
  float plane_multiplier_least, plane_multiplier_step;
} weft_encoding;

/* Rows [n][dim] of bytes to the numbers of their nearest centroids. */
typedef struct weft_label_args {
  uint32_t struct_size;
  uint64_t n;
  const int8_t* rows;
  uint16_t* labels;                     /* [n] */
  int32_t (*done)(void*, uint64_t now); /* so many more rows are done; other than 0 ends the call */
  void* data;
} weft_label_args;

/* Rows f16 [n][row_dim] to codes. The arrays hold one batch. */
typedef struct weft_encode_args {
  uint32_t struct_size;
  uint64_t n;
  const uint16_t* rows;
  uint16_t *parents, *steps;       /* [tokens_at_once] each */
  uint8_t *children, *multipliers; /* [tokens_at_once] each */
  uint8_t* codes;                  /* [tokens_at_once][dim * nbits / 8] */
  uint8_t* plane;                  /* [tokens_at_once][dim / 2]; null: none */
  uint8_t* plane_multipliers;      /* [tokens_at_once] */
  int32_t (*take)(void*, uint64_t first,
                  uint64_t n); /* the arrays hold rows first .. first + n - 1; */
  void* data;                  /* in order; other than 0 ends the call */
} weft_encode_args;

typedef struct weft_builder weft_builder;

typedef struct weft_backend {
  uint32_t abi, struct_size;
  const char* name;    /* of its devices: "cuda" or "emu" */
  const char* version; /* of weft: must be the caller's */
  const char* toolkit;
  void (*probe)(weft_probe* out); /* never fails */
  int32_t (*describe)(int32_t device, weft_device* out, weft_error* error);
  /* Device bytes that load() takes. */
  int32_t (*plan)(const weft_codec*, const weft_segment*, uint32_t n_segments, uint64_t* bytes,
                  weft_error* error);
  int32_t (*load)(int32_t device, const weft_codec*, const weft_segment*, uint32_t n_segments,
                  weft_resident** out, weft_error* error);
  void (*unload)(weft_resident*);
  int32_t (*scan)(const weft_resident*, const weft_scan_args*, weft_error* error);
  /* Copies device memory of another library to the host, after what was given to `stream` before: 1
     is the legacy default stream, 2 that of the thread, anything else a handle. */
  int32_t (*fetch)(void* to, const void* from, uint64_t bytes, uint64_t stream, weft_error* error);
  int32_t (*search)(const weft_resident*, const weft_search_args*, weft_error* error);
  /* encoding: null where labels are all that is wanted. A builder serves one thread. */
  int32_t (*open_builder)(int32_t device, const weft_nearest*, const weft_encoding* encoding,
                          uint32_t tokens_at_once, weft_builder** out, weft_error* error);
  void (*close_builder)(weft_builder*);
  int32_t (*label)(weft_builder*, const weft_label_args*, weft_error* error);
  int32_t (*encode)(weft_builder*, const weft_encode_args*, weft_error* error);
} weft_backend;

#if defined(__GNUC__)
__attribute__((visibility("default")))
#endif
const weft_backend* weft_backend_v1(void);

/* NOLINTEND(modernize-*) */

#ifdef __cplusplus
}
#endif

#endif
