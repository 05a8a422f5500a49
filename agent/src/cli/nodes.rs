//! `--all-nodes`: the same question to the agents of all nodes of a cluster, and their answers as one, by time.
//!
//! Each is asked by the way that `kubernetes::agents` makes. Who did not answer is named, with why, on stderr and in what is answered: an answer without
//! a node is no answer that nothing happened there. Called by `events`, `incidents` and `merged`.

use super::{Failure, Place, fetch};
use crate::clock;
use crate::export::Silent;
use crate::kubernetes::agents::{Agent, Agents, Wanted, Way};
use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

/// What is logged: what the client says of an error is said of the node that it is about.
pub const LOG: &str = "warn,kube_client=off";
/// Agents asked at once.
const AT_ONCE: usize = 32;
/// What is told live waits so long for what other nodes tell of the same time, in ns.
const TOGETHER: u64 = 1_000_000_000;
/// The list of agents is read so often while they are followed, in ns: new nodes, and agents that came back.
const LOOK_AGAIN: u64 = 10_000_000_000;

/// Which agents.
#[derive(Args)]
pub struct OnNodes {
    /// Ask the agents of all nodes, through the API server of the cluster that kubectl talks to.
    #[arg(long, conflicts_with_all = ["server", "data", "bucket"])]
    all_nodes: bool,
    /// Kubeconfig; default: $KUBECONFIG or ~/.kube/config.
    #[arg(long, value_name = "FILE", requires = "all_nodes")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; default: its current one.
    #[arg(long, value_name = "NAME", requires = "all_nodes")]
    context: Option<String>,
    /// Kubernetes namespace in which the agents run.
    #[arg(long, value_name = "NAME", default_value = "fgm", requires = "all_nodes")]
    agents_namespace: String,
    /// Label selector of the agents' pods.
    #[arg(
        long,
        value_name = "SELECTOR",
        default_value = "app.kubernetes.io/name=fgm",
        requires = "all_nodes"
    )]
    agents: String,
    /// Port of the agents' API (`listen`).
    #[arg(long, value_name = "PORT", default_value_t = 8050, requires = "all_nodes")]
    agents_port: u16,
}

/// What the nodes answered.
pub struct Answers<T> {
    /// Each with its node.
    pub given: Vec<(String, T)>,
    pub silent: Vec<Silent>,
}

impl OnNodes {
    /// `None` where one agent is asked, or none.
    pub fn open(&self) -> Result<Option<Nodes>, Failure> {
        if !self.all_nodes {
            return Ok(None);
        }
        let wanted = Wanted {
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
            namespace: self.agents_namespace.clone(),
            selector: self.agents.clone(),
            port: self.agents_port,
        };
        let what = format!("no pod of namespace {} has {}", wanted.namespace, wanted.selector);
        let agents = Agents::open(wanted).map_err(Failure::Usage)?;
        Ok(Some(Nodes {
            agents,
            nobody: format!("{what}; --agents-namespace and --agents say which pods are agents"),
        }))
    }
}

pub struct Nodes {
    agents: Agents,
    nobody: String,
}

impl Nodes {
    fn list(&self) -> Result<Vec<Agent>, Failure> {
        let found = self.agents.list().map_err(anyhow::Error::msg)?;
        if found.is_empty() {
            return Err(anyhow::Error::msg(self.nobody.clone()).into());
        }
        Ok(found)
    }

    /// Asks all; a question that one calls wrong is wrong.
    ///
    /// # Errors
    /// The question is wrong, there are no agents, or none answered.
    pub fn ask<T: Send>(
        &self,
        token_file: Option<&Path>,
        question: impl Fn(&Place) -> Result<T, Failure> + Sync,
    ) -> Result<Answers<T>, Failure> {
        let found = self.list()?;
        let mut all = Answers { given: Vec::new(), silent: Vec::new() };
        for some in found.chunks(AT_ONCE) {
            let answers: Vec<Result<T, Failure>> = thread::scope(|scope| {
                let asked: Vec<_> =
                    some.iter().map(|agent| scope.spawn(|| self.one(agent, token_file, &question))).collect();
                let cut_off = || Err(anyhow::anyhow!("the question was cut off").into());
                asked.into_iter().map(|one| one.join().unwrap_or_else(|_| cut_off())).collect()
            });
            for (agent, answer) in some.iter().zip(answers) {
                let node = agent.node.clone();
                match answer {
                    Ok(answer) => all.given.push((node, answer)),
                    Err(Failure::Failed(why)) => {
                        all.silent.push(Silent { node, why: super::chain(&why) });
                    }
                    Err(wrong) => return Err(wrong),
                }
            }
        }
        match self.agents.nodes_without(&found) {
            Ok(nodes) => all
                .silent
                .extend(nodes.into_iter().map(|node| Silent { node, why: "no agent runs there".to_owned() })),
            Err(why) => {
                tracing::warn!(why, "which nodes have no agent is not known: cannot list nodes");
            }
        }
        all.silent.iter().for_each(warn_of);
        if all.given.is_empty() {
            return Err(anyhow::anyhow!("of {} agents none answered", found.len()).into());
        }
        Ok(all)
    }

    /// Asks the agent of one node.
    ///
    /// # Errors
    /// It gave no answer, or calls the question wrong.
    pub fn ask_one<T>(
        &self,
        node: &str,
        token_file: Option<&Path>,
        question: impl Fn(&Place) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let agent = self.list()?.into_iter().find(|agent| agent.node == node);
        let agent = agent.ok_or_else(|| anyhow::anyhow!("the agent of node {node} has gone"))?;
        self.one(&agent, token_file, question)
    }

    fn one<T>(
        &self,
        agent: &Agent,
        token_file: Option<&Path>,
        question: impl Fn(&Place) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        if let Some(phase) = &agent.not_running {
            return Err(anyhow::anyhow!("its pod {} is {phase}", agent.pod).into());
        }
        let way = self.agents.way_to(&agent.pod).map_err(anyhow::Error::msg)?;
        question(&place(&way, token_file)).map_err(|failure| why(&way, agent, failure))
    }

    /// Calls `take` with the events of each second, by time, until it fails; never ends by itself.
    ///
    /// # Errors
    /// There are no agents, or `take` fails.
    pub fn follow(
        self,
        token_file: Option<PathBuf>,
        mut take: impl FnMut(&[Value]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let (nodes, token_file) = (Arc::new(self), Arc::new(token_file));
        let (tell, told) = mpsc::channel();
        let (mut followed, mut named) = (BTreeSet::new(), BTreeSet::new());
        let mut look_again = 0;
        loop {
            if clock::ktime_ns() >= look_again {
                let found = match nodes.list() {
                    Err(failure) if look_again == 0 => return Err(failure),
                    other => other.unwrap_or_else(|why| {
                        tracing::warn!(%why, "cannot look for agents");
                        Vec::new()
                    }),
                };
                look_again = clock::ktime_ns() + LOOK_AGAIN;
                for agent in found {
                    if !followed.insert(agent.pod.clone()) {
                        continue;
                    }
                    let (nodes, token_file, tell) = (nodes.clone(), token_file.clone(), tell.clone());
                    // not joined: what it waits for may never come
                    thread::spawn(move || nodes.follow_one(&agent, token_file.as_deref(), &tell));
                }
            }
            let mut events = Vec::new();
            let until = clock::ktime_ns() + TOGETHER;
            let left = || Duration::from_nanos(until.saturating_sub(clock::ktime_ns()));
            while let Ok(message) = told.recv_timeout(left()) {
                match message {
                    Told::Event(event) => events.push(event),
                    Told::Came(node) => {
                        if named.remove(&node) {
                            tracing::warn!("node {node}: answers again");
                        }
                    }
                    Told::Ended { pod, silent } => {
                        followed.remove(&pod);
                        // once for each time that it goes
                        if named.insert(silent.node.clone()) {
                            warn_of(&silent);
                        }
                    }
                }
            }
            events.sort_by_key(|event| event["ts_us"].as_i64());
            take(&events)?;
        }
    }

    fn follow_one(&self, agent: &Agent, token_file: Option<&Path>, tell: &Sender<Told>) {
        let node = &agent.node;
        let send = |told| tell.send(told).map_err(|_| anyhow::anyhow!("nobody listens").into());
        let ended = self.one(agent, token_file, |place| {
            fetch::follow(place, |name, data| match name {
                "events" => {
                    let events = data["events"].as_array().into_iter().flatten();
                    events.map(|event| of_node(node, event)).try_for_each(|event| send(Told::Event(event)))
                }
                "lost" => {
                    let rows = &data["rows"];
                    tracing::warn!(%rows, "node {node}: its agent told more at once than one message holds");
                    Ok(())
                }
                "problem" => Err(anyhow::anyhow!("{}", data["detail"].as_str().unwrap_or("?")).into()),
                _ => send(Told::Came(node.clone())),
            })
        });
        let why = ended.err().map_or_else(|| "its stream ended".to_owned(), |failure| failure.to_string());
        let silent = Silent { node: node.clone(), why };
        let _ = send(Told::Ended { pod: agent.pod.clone(), silent });
    }
}

/// From one that is followed.
enum Told {
    Event(Value),
    Came(String),
    Ended { pod: String, silent: Silent },
}

/// An event that says of which node it is.
pub fn of_node(node: &str, event: &Value) -> Value {
    let mut event = event.clone();
    if let Value::Object(event) = &mut event {
        event.entry("node").or_insert_with(|| json!(node));
    }
    event
}

fn place(way: &Way, token_file: Option<&Path>) -> Place {
    let server = format!("http://{}", way.address);
    Place { server, data: None, token_file: token_file.map(Path::to_owned) }
}

/// What went wrong on the way, which is more than that nobody answered at its end.
fn why(way: &Way, agent: &Agent, failure: Failure) -> Failure {
    match (failure, way.failed()) {
        (Failure::Failed(_), Some(why)) => anyhow::anyhow!("pod {}: {why}", agent.pod).into(),
        // the address of a way is of this moment alone
        (Failure::Failed(why), None) => {
            let said = super::chain(&why).replace(&format!("http://{}", way.address), "its agent");
            anyhow::Error::msg(said).into()
        }
        (failure, _) => failure,
    }
}

fn warn_of(silent: &Silent) {
    tracing::warn!("node {}: no answer: {}", silent.node, silent.why);
}

impl<T> Answers<T> {
    /// For programs.
    pub fn unanswered(&self) -> Value {
        json!(self.silent)
    }
}
