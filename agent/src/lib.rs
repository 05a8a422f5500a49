//! Fine-Grained Monitor: a flight recorder for containers.
//!
//! The library behind the binary `fgm`; its tests use it too. The way of the data, in the order of the files, is in
//! ARCHITECTURE.md.

pub mod accumulator;
pub mod analyze;
pub mod bucket;
pub mod catalogue;
pub mod cgroup;
pub mod cli;
pub mod clock;
pub mod compaction;
pub mod config;
pub mod discovery;
pub mod event;
pub mod export;
pub mod fleet;
pub mod incident;
pub mod journal;
pub mod kubernetes;
pub mod lane;
pub mod ledger;
pub mod machine;
pub mod names;
pub mod notify;
pub mod pipeline;
pub mod pods;
pub mod priority;
pub mod probes;
pub mod processes;
pub mod query;
pub mod recorder;
pub mod report;
pub mod retention;
pub mod sampler;
pub mod schema;
pub mod segment;
pub mod ship;
pub mod store;
pub mod story;
pub mod timeseries;
pub mod trigger;
pub mod upkeep;
pub mod viewer;
pub mod warn;
