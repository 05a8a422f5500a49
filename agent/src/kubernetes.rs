//! The watch over this node's pods: who they are, told to `pods` as the API server tells it.
//!
//! On a thread and a runtime of its own; nothing waits for it, and an agent without it lacks names and nothing else.
//! Asks for `list` and `watch` of pods with `spec.nodeName` of this node, and for nothing else. What an API server does to
//! a client (an end in the middle of an object, 410, a refusal, silence) ends in a state that says what is wrong and how to mend
//! it, and in another attempt. `pipeline` starts and ends it.

pub mod agents;
mod patience;
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
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Error};
use patience::Patience;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::future::pending;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tower::util::MapResponseLayer;

/// Pods of a page of the list: what is in memory as whole objects at a time, some 20 KB each.
const PAGE: u32 = 50;
/// Watches that are answered one after another and end before they settle: more are no watches.
const MOST_ANSWERS: u32 = 10;
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

    /// What the settings are in, to see whether somebody changed them; in a pod the token alone changes, and is read anew by the client.
    fn text(&self) -> Option<Vec<u8>> {
        match self {
            Self::Kubeconfig(path) => std::fs::read(path).ok(),
            Self::InCluster => None,
        }
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
            let mut patience = Patience::default();
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = always(&place, &node, &pods, &state, &mut patience) => {}
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

/// Where to go on after something ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Where it was.
    GoOn,
    /// With a list.
    Anew,
    /// With the settings: they may say something else by now.
    Settings,
}

/// What a watch by certain settings works with.
struct Attempt<'a> {
    pods: &'a Pods,
    state: &'a State,
    /// Told of each answer that may be the beginning of a watch.
    answered: &'a Notify,
    /// Whether the settings were changed since they were read.
    has_changed: &'a dyn Fn() -> bool,
}

/// Watches until it is dropped. Settings are read again when they cannot be used, are not taken, changed, or lead nowhere for long: a token or
/// a kubeconfig may come later, and an expired one is replaced.
async fn always(place: &Place, node: &str, pods: &Pods, state: &State, patience: &mut Patience) {
    loop {
        let text = place.text();
        match place.config().await.and_then(|config| client(config, patience.silence)) {
            Ok((client, answered)) => {
                // whatever else is wrong stays said until something is understood
                if matches!(state.watch(), Watch::Off { .. }) {
                    state.set(Watch::Connecting);
                }
                let has_changed = || place.text() != text;
                watch(
                    client,
                    node,
                    &Attempt { pods, state, answered: &answered, has_changed: &has_changed },
                    patience,
                )
                .await;
            }
            Err(why) => {
                state.set(Watch::Off { why });
                tokio::time::sleep(patience.failed()).await;
            }
        }
    }
}

/// A client, and what it tells of each answer that was given in JSON: a watch that goes on after an outage has nothing else to say for itself.
fn client(mut config: kube::Config, silence: Duration) -> Result<(Client, Arc<Notify>), String> {
    config.read_timeout = Some(silence);
    config.reset_reader_on_write = true;
    let answered = Arc::new(Notify::new());
    let tell = answered.clone();
    let told = MapResponseLayer::new(move |answer: axum::http::Response<_>| {
        let kind = answer.headers().get(axum::http::header::CONTENT_TYPE).map_or(&[][..], |k| k.as_bytes());
        // a page of somebody else's may be left open as well
        if answer.status().is_success() && kind.starts_with(b"application/json") {
            tell.notify_waiters();
        }
        answer
    });
    let builder =
        ClientBuilder::try_from(config).map_err(|e| format!("no client can be made of it: {}", chain(&e)))?;
    Ok((builder.with_layer(&told).build(), answered))
}

/// Watches until the settings are to be read anew.
async fn watch(client: Client, node: &str, attempt: &Attempt<'_>, patience: &mut Patience) {
    let api: Api<Pod> = Api::all(client);
    let wanted = watcher::Config::default().fields(&format!("spec.nodeName={node}")).page_size(PAGE);
    while follow(watcher(api.clone(), wanted.clone()), attempt, patience).await != Next::Settings {}
}

/// The list that is being read: UIDs that it has named so far.
type Listing = Option<HashSet<String>>;

/// Ends after this time, or, without one, never.
async fn after(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => pending().await,
    }
}

/// Takes what a watcher tells until it has to be begun anew.
async fn follow(
    events: impl Stream<Item = watcher::Result<Event<Pod>>>,
    attempt: &Attempt<'_>,
    patience: &mut Patience,
) -> Next {
    let Attempt { pods, state, .. } = *attempt;
    let mut events = pin!(events);
    let mut listing: Listing = None;
    // answers since something was understood
    let mut answers = 0;
    loop {
        let late = after(listing.is_some().then_some(patience.page_within));
        let settled = after((answers > 0).then_some(patience.settles));
        let (watch, next) = tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => {
                    // the beginning of a list is told before it is asked for
                    if !matches!(event, Event::Init) {
                        patience.heard();
                    }
                    answers = 0;
                    take(event, &mut listing, pods, state);
                    continue;
                }
                Some(Err(error)) => verdict(&error),
                None => (None, Next::Anew),
            },
            () = attempt.answered.notified(), if listing.is_none() => {
                answers += 1;
                if answers <= MOST_ANSWERS {
                    continue;
                }
                let why = "what answers to watch ends at once, each time, and says nothing".to_owned();
                (Some(Watch::Unreachable { why }), Next::Anew)
            }
            () = settled => {
                answers = 0;
                patience.heard();
                state.heard();
                continue;
            }
            () = late => {
                let why = format!("the API server did not answer a list within {} s", patience.page_within.as_secs());
                (Some(Watch::Unreachable { why }), Next::Anew)
            }
        };
        (listing, answers) = (None, 0);
        if let Some(watch) = watch {
            state.set(watch);
        }
        tokio::time::sleep(patience.failed()).await;
        if patience.is_over() || (attempt.has_changed)() {
            return Next::Settings;
        }
        if next != Next::GoOn {
            return next;
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

/// What an error means, and where to go on: not where it was after an object that could not be read, which would be left out, nor with a version
/// that the server no longer has; and not by a token that it does not take.
fn verdict(error: &watcher::Error) -> (Option<Watch>, Next) {
    let (verb, cause) = match error {
        watcher::Error::InitialListFailed(e) => ("list", e),
        watcher::Error::WatchStartFailed(e) | watcher::Error::WatchFailed(e) => ("watch", e),
        watcher::Error::WatchError(status) if status.code == 410 => return (None, Next::GoOn),
        watcher::Error::WatchError(status) => {
            return refused("watch", status.code, &status.message, Next::Anew);
        }
        watcher::Error::NoResourceVersion => {
            let why = "what answers is no API server: its list has no resourceVersion".to_owned();
            return (Some(Watch::Unreachable { why }), Next::Anew);
        }
    };
    match cause {
        Error::Api(status) if status.code == 410 => (None, Next::Anew),
        // any JSON object that is no event passes for a status, one without a code
        Error::Api(status) if status.code == 0 => {
            let why = format!("what answers to {verb} says something else than what became of pods");
            (Some(Watch::Unreachable { why }), Next::Anew)
        }
        Error::Api(status) => {
            let is_in_stream = matches!(error, watcher::Error::WatchFailed(_));
            let next = if is_in_stream { Next::Anew } else { Next::GoOn };
            refused(verb, status.code, &status.message, next)
        }
        Error::SerdeError(e) => {
            let why = format!("what answers to {verb} is no list of pods ({e})");
            (Some(Watch::Unreachable { why }), Next::Anew)
        }
        other => {
            let why = format!("the API server cannot be reached: {}", chain(other));
            (Some(Watch::Unreachable { why }), Next::GoOn)
        }
    }
}

fn refused(verb: &str, code: u16, message: &str, next: Next) -> (Option<Watch>, Next) {
    (Some(refusal(verb, code, message)), if code == 401 { Next::Settings } else { next })
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
