//! The watch over this node's pods: who they are, told to `pods` as the API server tells it.
//!
//! On a thread and a runtime of its own; nothing waits for it, and an agent without it lacks names and nothing else.
//! Asks for `list` and `watch` of pods with `spec.nodeName` of this node, and for nothing else. What an API server does to
//! a client (an end in the middle of an object, 410, a refusal, silence) ends in a state that says what is wrong and how to mend
//! it, and in another attempt. `pipeline` starts and ends it.

pub mod agents;
mod pod;
mod state;

pub use state::{State, Watch};

use crate::config::{Config, Kubernetes as Settings};
use crate::pods::Pods;
use crate::priority::{self, Work};
use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, DefaultBackoff, Event, watcher};
use kube::{Client, Error};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::future::pending;
use std::path::Path;
use std::pin::pin;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;
use tower::util::MapResponseLayer;

/// Pods of a page of the list: what is in memory as whole objects at a time, some 20 KB each.
const PAGE: u32 = 50;
/// A page that has not come by then does not come.
const PAGE_WITHIN: Duration = Duration::from_secs(60);
/// A watch says something (a bookmark at the least) or ends within 290 s.
const SILENCE: Duration = Duration::from_secs(300);
/// The longest pause between two attempts, and that after settings that cannot be used.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long the end of the agent waits for the thread.
const STOP_WITHIN: Duration = Duration::from_secs(1);

/// Where the API server is and who we are to it.
enum Place {
    Kubeconfig(std::path::PathBuf),
    InCluster,
}

impl Place {
    fn find(settings: &Settings, in_cluster: bool) -> Result<Self, String> {
        if !settings.enabled {
            return Err("kubernetes.enabled is false in the configuration".to_owned());
        }
        if !settings.kubeconfig.as_os_str().is_empty() {
            return Ok(Self::Kubeconfig(settings.kubeconfig.clone()));
        }
        if in_cluster {
            return Ok(Self::InCluster);
        }
        Err("not in a cluster (KUBERNETES_SERVICE_HOST is not set), and kubernetes.kubeconfig names no file"
            .to_owned())
    }

    async fn config(&self) -> Result<kube::Config, String> {
        match self {
            Self::InCluster => kube::Config::incluster().map_err(|e| {
                format!(
                    "the service account cannot be used: {}; the pod needs serviceAccountName and automountServiceAccountToken: true",
                    chain(&e)
                )
            }),
            Self::Kubeconfig(path) => kube_config(path, &KubeConfigOptions::default()).await.map_err(|why| {
                format!(
                    "kubernetes.kubeconfig {} cannot be used: {why}; name a file that `kubectl --kubeconfig {} get pods -A` works with",
                    path.display(),
                    path.display()
                )
            }),
        }
    }
}

async fn kube_config(path: &Path, options: &KubeConfigOptions) -> Result<kube::Config, String> {
    let file = Kubeconfig::read_from(path).map_err(|e| chain(&e))?;
    kube::Config::from_custom_kubeconfig(file, options).await.map_err(|e| chain(&e))
}

/// An error with its causes, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut at = error.source();
    while let Some(cause) = at {
        let text = cause.to_string();
        if !out.contains(&text) {
            out = format!("{out}: {text}");
        }
        at = cause.source();
    }
    out
}

/// A name that the API server can have given to a node (RFC 1123, as it checks it).
fn is_node_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    !name.is_empty() && name.len() <= 253 && name.chars().all(fits)
}

/// The watch, its table and its state.
pub struct Kubernetes {
    pub pods: Pods,
    state: State,
    node: String,
    is_host_name: bool,
    running: Option<Running>,
}

struct Running {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

/// What others read of it.
#[derive(Clone)]
pub struct View {
    pub pods: Pods,
    state: State,
    node: String,
    is_host_name: bool,
}

impl View {
    /// As `/api/status` has it.
    pub fn json(&self) -> Value {
        let count = self.pods.count();
        self.state.json(json!({
            "node": self.node,
            "pods": count.live,
            "pods_gone": count.gone,
            "pods_refused": count.refused,
            "advice": self.advice(),
        }))
    }

    /// One line for a person.
    pub fn line(&self) -> String {
        let advice = self.advice().map_or_else(String::new, |a| format!("; {a}"));
        format!("{}, {} pods{advice}", self.state.line(), self.pods.count().live)
    }

    /// An answer without a single pod is most likely one about another node's name.
    fn advice(&self) -> Option<String> {
        let is_empty = self.state.watch() == Watch::Synced && self.pods.count().live == 0;
        let whose = if self.is_host_name { ", which is the host name since `node` is not set" } else { "" };
        is_empty.then(|| {
            format!(
                "no pod has spec.nodeName {}{whose}: set node (FGM_NODE) to the name that `kubectl get nodes` has for it",
                self.node
            )
        })
    }
}

impl Kubernetes {
    /// Begins to watch, if there is where. `is_host_name`: nobody set `node`, it is the host's name.
    pub fn start(config: &Config, is_host_name: bool) -> Self {
        // a kubelet makes a node's name of the host's in lower case
        let node = if is_host_name { config.node.to_lowercase() } else { config.node.clone() };
        let in_cluster = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        let place = Place::find(&config.kubernetes, in_cluster).and_then(|place| {
            let why = || format!("node = {node:?} (FGM_NODE) is no name of a Kubernetes node; set it to one that `kubectl get nodes` lists");
            is_node_name(&node).then_some(place).ok_or_else(why)
        });
        let pods = Pods::default();
        let (state, place) = match place {
            Ok(place) => (State::new(Watch::Connecting), Some(place)),
            Err(why) => {
                tracing::info!(why, "no names from Kubernetes");
                (State::new(Watch::Off { why }), None)
            }
        };
        let mut all = Self { pods, state, node, is_host_name, running: None };
        all.running = place.and_then(|place| all.run(place));
        all
    }

    fn run(&self, place: Place) -> Option<Running> {
        let (stop, stopped) = oneshot::channel();
        let (pods, state, node) = (self.pods.clone(), self.state.clone(), self.node.clone());
        let work = move || {
            priority::of_this_thread(Work::Upkeep);
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    return state.set(Watch::Off { why: format!("cannot start its runtime: {error}") });
                }
            };
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = always(&place, &node, &pods, &state) => {}
                }
            });
            // a look-up of an address may hang in the C library
            runtime.shutdown_timeout(STOP_WITHIN);
        };
        let thread = std::thread::Builder::new().name("fgm-kubernetes".to_owned()).spawn(work);
        match thread {
            Ok(thread) => Some(Running { stop, thread }),
            Err(error) => {
                self.state.set(Watch::Off { why: format!("cannot start its thread: {error}") });
                None
            }
        }
    }

    pub fn view(&self) -> View {
        View {
            pods: self.pods.clone(),
            state: self.state.clone(),
            node: self.node.clone(),
            is_host_name: self.is_host_name,
        }
    }

    /// False where there is nobody to ask, for the whole run.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Ends the watch.
    pub fn stop(self) {
        if let Some(Running { stop, thread }) = self.running {
            let _ = stop.send(());
            let _ = thread.join();
        }
    }
}

/// Watches until it is dropped. Settings that cannot be used are read again: a token or a kubeconfig may come later.
async fn always(place: &Place, node: &str, pods: &Pods, state: &State) {
    loop {
        match place.config().await.and_then(|config| client(config, state)) {
            Ok(client) => {
                state.set(Watch::Connecting);
                watch(client, node, pods, state).await;
            }
            Err(why) => state.set(Watch::Off { why }),
        }
        tokio::time::sleep(LONGEST_PAUSE).await;
    }
}

/// A client that tells the state of each answer: a watch that goes on after an outage has nothing else to say for itself.
fn client(mut config: kube::Config, state: &State) -> Result<Client, String> {
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    let state = state.clone();
    let told = MapResponseLayer::new(move |answer: axum::http::Response<_>| {
        if answer.status().is_success() {
            state.heard();
        }
        answer
    });
    let builder =
        ClientBuilder::try_from(config).map_err(|e| format!("no client can be made of it: {}", chain(&e)))?;
    Ok(builder.with_layer(&told).build())
}

async fn watch(client: Client, node: &str, pods: &Pods, state: &State) {
    let api: Api<Pod> = Api::all(client);
    let wanted = watcher::Config::default().fields(&format!("spec.nodeName={node}")).page_size(PAGE);
    let mut pauses = DefaultBackoff::default();
    loop {
        follow(watcher(api.clone(), wanted.clone()), pods, state, &mut pauses).await;
    }
}

/// The list that is being read: UIDs that it has named so far.
type Listing = Option<HashSet<String>>;

/// Takes what a watcher tells until it has to be begun anew, with a list.
async fn follow(
    events: impl Stream<Item = watcher::Result<Event<Pod>>>,
    pods: &Pods,
    state: &State,
    pauses: &mut impl Iterator<Item = Duration>,
) {
    let mut events = pin!(events);
    let mut listing: Listing = None;
    let mut pause = || pauses.next().unwrap_or(LONGEST_PAUSE).min(LONGEST_PAUSE);
    loop {
        let within =
            async { if listing.is_some() { tokio::time::sleep(PAGE_WITHIN).await } else { pending().await } };
        let event = tokio::select! {
            event = events.next() => event,
            () = within => {
                let why = format!("the API server did not answer a list within {} s", PAGE_WITHIN.as_secs());
                state.set(Watch::Unreachable { why });
                return tokio::time::sleep(pause()).await;
            }
        };
        match event {
            Some(Ok(event)) => take(event, &mut listing, pods, state),
            Some(Err(error)) => {
                listing = None;
                let (watch, begin_anew) = verdict(&error);
                if let Some(watch) = watch {
                    state.set(watch);
                }
                tokio::time::sleep(pause()).await;
                if begin_anew {
                    return;
                }
            }
            None => return tokio::time::sleep(pause()).await,
        }
    }
}

fn take(event: Event<Pod>, listing: &mut Listing, pods: &Pods, state: &State) {
    let named = |object| {
        let pod = pod::of(object);
        if pod.is_none() {
            state.unnamed();
        }
        pod
    };
    match event {
        Event::Init => *listing = Some(HashSet::new()),
        Event::InitApply(object) => {
            let Some(pod) = named(object) else { return };
            if let Some(listing) = listing {
                listing.insert(pod.uid.clone());
            }
            pods.apply(pod);
        }
        Event::InitDone => {
            if let Some(listing) = listing.take() {
                pods.only(|uid| listing.contains(uid));
            }
            state.listed();
        }
        Event::Apply(object) => {
            state.heard();
            if let Some(pod) = named(object) {
                pods.apply(pod);
            }
        }
        // its last state tells how its containers ended
        Event::Delete(object) => {
            state.heard();
            let Some(pod) = named(object) else { return };
            let uid = pod.uid.clone();
            pods.apply(pod);
            pods.deleted(&uid);
        }
    }
}

/// What an error means, and whether the watch can go on where it was: not after an object that could not be read, which would
/// be left out, nor with a version that the server no longer has.
fn verdict(error: &watcher::Error) -> (Option<Watch>, bool) {
    let (verb, cause) = match error {
        watcher::Error::InitialListFailed(e) => ("list", e),
        watcher::Error::WatchStartFailed(e) | watcher::Error::WatchFailed(e) => ("watch", e),
        watcher::Error::WatchError(status) if status.code == 410 => return (None, false),
        watcher::Error::WatchError(status) => {
            return (Some(refusal("watch", status.code, &status.message)), true);
        }
        watcher::Error::NoResourceVersion => {
            let why = "what answers is no API server: its list has no resourceVersion".to_owned();
            return (Some(Watch::Unreachable { why }), true);
        }
    };
    match cause {
        Error::Api(status) if status.code == 410 => (None, true),
        // any JSON object that is no event passes for a status, one without a code
        Error::Api(status) if status.code == 0 => {
            let why = format!("what answers to {verb} says something else than what became of pods");
            (Some(Watch::Unreachable { why }), true)
        }
        Error::Api(status) => {
            let is_in_stream = matches!(error, watcher::Error::WatchFailed(_));
            (Some(refusal(verb, status.code, &status.message)), is_in_stream)
        }
        Error::SerdeError(e) => {
            let why = format!("what answers to {verb} is no list of pods ({e})");
            (Some(Watch::Unreachable { why }), true)
        }
        other => {
            let why = format!("the API server cannot be reached: {}", chain(other));
            (Some(Watch::Unreachable { why }), false)
        }
    }
}

fn refusal(verb: &str, code: u16, message: &str) -> Watch {
    match code {
        401 => Watch::Denied {
            why: format!(
                "the API server does not take our token (401, {message}): it has expired or is another cluster's; in a pod the \
                 kubelet renews it, elsewhere put a valid one into the file that kubernetes.kubeconfig names"
            ),
        },
        403 => Watch::Denied {
            why: format!(
                "we may not {verb} pods (403, {message}): bind a ClusterRole with the verbs list and watch on pods, as in \
                 deploy/helm/templates/rbac.yaml"
            ),
        },
        _ => {
            Watch::Unreachable { why: format!("the API server answers {code} to {verb} of pods: {message}") }
        }
    }
}

#[cfg(test)]
mod tests;
