//! What 5,000 pods on a node take of memory: counted by the allocator itself.
//!
//! Alone in its binary, and one test only, since the count is of the whole process. The API server is in it too, with all its pods before the
//! count begins.

#[path = "support/api_server.rs"]
mod api_server;

use api_server::{ApiServer, NODE, TOKEN, pod};
use fgm::config::{Config, Kubernetes as Settings};
use fgm::kubernetes::Kubernetes;
use serde_json::json;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const PODS: usize = 5000;
/// Of each an object has that much which is not kept, as a real one does.
const MANAGED_BYTES: usize = 4000;
/// What is kept of a pod, its names in all indexes, and its share of what a connection holds.
const MOST_BYTES_A_POD: usize = 3000;

#[test]
fn five_thousand_pods_are_known_in_bounded_memory() {
    let server = ApiServer::start();
    for n in 0..PODS {
        let mut p = pod(&format!("u{n}"), &format!("cart-{n}"), &format!("{n:064x}"));
        p["metadata"]["managedFields"] =
            json!([{"manager": "kubelet", "fieldsV1": {"f:status": {"f:x": "x".repeat(MANAGED_BYTES)}}}]);
        server.change_unseen(p, true);
    }
    let dir = tempfile::tempdir().expect("a folder");
    let kubeconfig = server.kubeconfig(dir.path(), TOKEN);
    let config = Config {
        node: NODE.to_owned(),
        kubernetes: Settings { enabled: true, kubeconfig },
        ..Config::default()
    };
    let region = Region::new(ALLOCATOR);
    let names = Kubernetes::start(&config, false);
    let (view, end) = (names.view(), fgm::clock::ktime_ns() + 60_000_000_000);
    while view.json()["state"] != "synced" {
        assert!(fgm::clock::ktime_ns() < end, "{}", view.json());
        std::thread::sleep(Duration::from_millis(20));
    }
    let change = region.change();
    let kept = change.bytes_allocated.saturating_sub(change.bytes_deallocated);
    assert_eq!(view.json()["pods"], PODS);
    let who = names.pods.who(Some("u4999"), Some(&format!("{:064x}", 4999)));
    assert_eq!(who.map(|w| w.pod.name.clone()).as_deref(), Some("cart-4999"));
    println!("{PODS} pods: {kept} bytes, {} each", kept / PODS);
    assert!(kept < PODS * MOST_BYTES_A_POD, "{kept} bytes, {} each", kept / PODS);
    // a test of the count itself: less than the names alone would be none
    assert!(kept > PODS * 500, "{kept} bytes");
    names.stop();
}
