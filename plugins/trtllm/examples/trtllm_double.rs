//! The engine over its double as a library of its own, under a name that says so: for tests of the child-process host.
//!
//! `cargo test` builds it with the other examples.

mainstay_engine_abi::export_engine!(mainstay_trtllm::TrtllmEngine);
