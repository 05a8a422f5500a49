//! The agents of a whole cluster: which pods they are, and a way into each through the API server.
//!
//! What `kubectl port-forward` does: an address on loopback of which each connection goes through the API server and the kubelet to the
//! loopback of the pod, where the agent listens. Asks for `list` of pods (and of nodes, if it may) and `create` of `pods/portforward`.
//! On a thread of its own; whoever asks waits. Called by `cli`.

use super::{chain, kube_config};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams};
use kube::client::ClientBuilder;
use kube::config::KubeConfigOptions;
use kube::{Client, Resource};
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::AbortHandle;
use tokio::time::timeout;

const ANSWER_WITHIN: Duration = Duration::from_secs(30);
const PAGE: u32 = 500;

/// Which cluster, and which of its pods are agents.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Without: what `$KUBECONFIG` names, or `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    pub context: Option<String>,
    pub namespace: String,
    /// Label selector.
    pub selector: String,
    pub port: u16,
}

/// A pod that is an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    pub node: String,
    pub pod: String,
    /// Why it cannot be asked: its phase, if it does not run.
    pub not_running: Option<String>,
}

pub struct Agents {
    runtime: Runtime,
    client: Client,
    wanted: Wanted,
}

/// A way into a pod, open until it is dropped.
pub struct Way {
    pub address: SocketAddr,
    failed: Arc<Failed>,
    listening: AbortHandle,
}

impl Drop for Way {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// Why the last connection came to nothing, and how many have no verdict yet.
#[derive(Default)]
struct Failed {
    why: Mutex<Option<String>>,
    open: AtomicUsize,
}

impl Way {
    /// Why the last connection came to nothing, where it was the way's fault. Whoever asks has seen its end before we have: waits
    /// for ours, a second at the most.
    pub fn failed(&self) -> Option<String> {
        for _ in 0..100 {
            if self.failed.open.load(Ordering::Acquire) == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.failed.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Agents {
    /// Reads the kubeconfig; asks nobody yet.
    ///
    /// # Errors
    /// There is none, or it cannot be used.
    pub fn open(wanted: Wanted) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("fgm-agents")
            .enable_all()
            .build()
            .map_err(|e| format!("cannot start a runtime: {e}"))?;
        let options = KubeConfigOptions { context: wanted.context.clone(), ..KubeConfigOptions::default() };
        let client = runtime.block_on(async {
            let config = match &wanted.kubeconfig {
                Some(path) => kube_config(path, &options).await,
                None => kube::Config::from_kubeconfig(&options).await.map_err(|e| chain(&e)),
            };
            let builder = ClientBuilder::try_from(config?).map_err(|e| chain(&e))?;
            Ok::<_, String>(builder.build())
        });
        let place = wanted.kubeconfig.as_ref().map_or_else(
            || "kubectl's configuration ($KUBECONFIG, ~/.kube/config)".to_owned(),
            |p| p.display().to_string(),
        );
        let client = client.map_err(|why| {
            format!(
                "{place} cannot be used: {why}; --kubeconfig names another, --context one of its contexts"
            )
        })?;
        Ok(Self { runtime, client, wanted })
    }

    /// All agents, by node.
    ///
    /// # Errors
    /// The API server does not say.
    pub fn list(&self) -> Result<Vec<Agent>, String> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.wanted.namespace);
        let found = self
            .all(&pods, &self.wanted.selector)
            .map_err(|why| format!("cannot list the pods of namespace {}: {why}", self.wanted.namespace))?;
        let mut agents: Vec<Agent> = found
            .into_iter()
            .filter_map(|pod| {
                let phase = pod.status.and_then(|s| s.phase).unwrap_or_else(|| "Unknown".to_owned());
                let is_leaving = pod.metadata.deletion_timestamp.is_some();
                let what = if is_leaving { "being deleted".to_owned() } else { phase };
                Some(Agent {
                    node: pod.spec.and_then(|s| s.node_name).unwrap_or_else(|| "(no node yet)".to_owned()),
                    pod: pod.metadata.name?,
                    not_running: (what != "Running").then_some(what),
                })
            })
            .collect();
        // of one node, an agent that runs goes before one that leaves
        agents.sort_by(|a, b| {
            (&a.node, a.not_running.is_some(), &a.pod).cmp(&(&b.node, b.not_running.is_some(), &b.pod))
        });
        agents.dedup_by(|later, first| later.node == first.node && first.not_running.is_none());
        Ok(agents)
    }

    /// Nodes on which there is none of these agents.
    ///
    /// # Errors
    /// The API server does not say which nodes there are; most often we may not know.
    pub fn nodes_without(&self, agents: &[Agent]) -> Result<Vec<String>, String> {
        let with: BTreeSet<&str> = agents.iter().map(|a| a.node.as_str()).collect();
        let nodes = self.all(&Api::<Node>::all(self.client.clone()), "")?;
        let names = nodes.into_iter().filter_map(|n| n.metadata.name);
        Ok(names.filter(|name| !with.contains(name.as_str())).collect())
    }

    fn all<K>(&self, api: &Api<K>, selector: &str) -> Result<Vec<K>, String>
    where
        K: Resource + Clone + Debug + serde::de::DeserializeOwned,
    {
        let mut out = Vec::new();
        let mut page = ListParams::default().labels(selector).limit(PAGE);
        self.runtime.block_on(async {
            loop {
                let list = timeout(ANSWER_WITHIN, api.list(&page))
                    .await
                    .map_err(|_| format!("no answer within {} s", ANSWER_WITHIN.as_secs()))?
                    .map_err(|e| chain(&e))?;
                out.extend(list.items);
                match list.metadata.continue_.filter(|token| !token.is_empty()) {
                    Some(token) => page = page.continue_token(&token),
                    None => return Ok(out),
                }
            }
        })
    }

    /// An address on loopback that leads to the agent's own.
    ///
    /// # Errors
    /// There is no port left on this machine.
    pub fn way_to(&self, pod: &str) -> Result<Way, String> {
        let listener = self
            .runtime
            .block_on(TcpListener::bind("127.0.0.1:0"))
            .map_err(|e| format!("no port on loopback: {e}"))?;
        let address = listener.local_addr().map_err(|e| e.to_string())?;
        let failed = Arc::new(Failed::default());
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.wanted.namespace);
        let (pod, port, told) = (pod.to_owned(), self.wanted.port, failed.clone());
        let handle = self.runtime.handle().clone();
        let listening = self.runtime.spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let (api, pod, told) = (api.clone(), pod.clone(), told.clone());
                told.open.fetch_add(1, Ordering::AcqRel);
                handle.spawn(async move {
                    let failed = forward(&api, &pod, port, from).await.err();
                    *told.why.lock().unwrap_or_else(PoisonError::into_inner) = failed;
                    told.open.fetch_sub(1, Ordering::AcqRel);
                });
            }
        });
        Ok(Way { address, failed, listening: listening.abort_handle() })
    }
}

/// One connection.
async fn forward(api: &Api<Pod>, pod: &str, port: u16, mut from: TcpStream) -> Result<(), String> {
    let opened = timeout(ANSWER_WITHIN, api.portforward(pod, &[port])).await;
    let mut there = opened
        .map_err(|_| {
            format!("the API server did not open a port-forward within {} s", ANSWER_WITHIN.as_secs())
        })?
        .map_err(|e| format!("the API server refuses the port-forward: {}", chain(&e)))?;
    let (Some(mut stream), Some(error)) = (there.take_stream(port), there.take_error(port)) else {
        return Err("the port-forward has no stream".to_owned());
    };
    let copied = copy_bidirectional(&mut from, &mut stream).await;
    drop(stream);
    // what the kubelet says, such as that nobody listens there
    let said = timeout(Duration::from_millis(100), error).await;
    there.abort();
    if let Ok(Some(why)) = said {
        return Err(why);
    }
    copied.map(drop).map_err(|e| format!("the port-forward broke off: {e}"))
}
