//! How the watch stands, for `/api/status`, `/readyz` and the log: never a reason to be not ready, always said.

use crate::clock;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The state, with what is wrong and how to mend it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watch {
    Off { why: String },
    Connecting,
    Synced,
    Denied { why: String },
    Unreachable { why: String },
}

impl Watch {
    fn word(&self) -> &'static str {
        match self {
            Self::Off { .. } => "off",
            Self::Connecting => "connecting",
            Self::Synced => "synced",
            Self::Denied { .. } => "denied",
            Self::Unreachable { .. } => "unreachable",
        }
    }

    fn why(&self) -> Option<&str> {
        match self {
            Self::Off { why } | Self::Denied { why } | Self::Unreachable { why } => Some(why),
            Self::Connecting | Self::Synced => None,
        }
    }
}

struct Inner {
    watch: Watch,
    since_us: i64,
    last_error: Option<(i64, String)>,
    /// Lists that were read to their end.
    lists: u64,
    /// Objects that do not say who they are.
    unnamed: u64,
}

/// Shared by the thread that watches and those that ask.
#[derive(Clone)]
pub struct State(Arc<Mutex<Inner>>);

impl State {
    pub fn new(watch: Watch) -> Self {
        let since_us = clock::wall_us();
        Self(Arc::new(Mutex::new(Inner { watch, since_us, last_error: None, lists: 0, unnamed: 0 })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change of the state is logged, once; the same kind of trouble again is not.
    pub fn set(&self, watch: Watch) {
        let mut inner = self.inner();
        if let Some(why) = watch.why() {
            inner.last_error = Some((clock::wall_us(), why.to_owned()));
        }
        if inner.watch.word() != watch.word() {
            let state = watch.word();
            if let Some(why) = watch.why() {
                tracing::warn!(state, why, "no names from Kubernetes for now");
            } else {
                tracing::info!(state, "names from Kubernetes");
            }
            inner.since_us = clock::wall_us();
        }
        inner.watch = watch;
    }

    pub fn listed(&self) {
        self.inner().lists += 1;
        self.set(Watch::Synced);
    }

    /// The server answered, or told something: what was listed is current again.
    pub fn heard(&self) {
        if self.inner().lists > 0 {
            self.set(Watch::Synced);
        }
    }

    pub fn unnamed(&self) {
        self.inner().unnamed += 1;
    }

    pub fn watch(&self) -> Watch {
        self.inner().watch.clone()
    }

    /// As `/api/status` has it; `more` are members besides.
    pub fn json(&self, more: Value) -> Value {
        let inner = self.inner();
        let mut all = json!({
            "state": inner.watch.word(),
            "since_us": inner.since_us,
            "why": inner.watch.why(),
            "last_error": inner.last_error.as_ref().map(|(at_us, text)| json!({"at_us": at_us, "text": text})),
            "lists": inner.lists,
            "unnamed_objects": inner.unnamed,
        });
        if let (Value::Object(all), Value::Object(more)) = (&mut all, more) {
            all.extend(more);
        }
        all
    }

    /// One line for a person.
    pub fn line(&self) -> String {
        let inner = self.inner();
        let since = jiff::Timestamp::from_microsecond(inner.since_us)
            .map_or_else(|_| String::new(), |t| t.strftime(" since %Y-%m-%d %H:%M:%S UTC").to_string());
        let why = inner.watch.why().map_or_else(String::new, |why| format!(": {why}"));
        format!("kubernetes: {}{since}{why}", inner.watch.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_has_its_beginning_and_the_last_error_stays() {
        let state = State::new(Watch::Connecting);
        state.heard();
        assert_eq!(state.watch(), Watch::Connecting, "nothing was listed: nothing is current");
        state.set(Watch::Unreachable { why: "refused".into() });
        let since = state.json(json!({}))["since_us"].clone();
        state.set(Watch::Unreachable { why: "still refused".into() });
        let now = state.json(json!({"pods": 3}));
        assert_eq!(
            (&now["state"], &now["since_us"], &now["pods"]),
            (&json!("unreachable"), &since, &json!(3))
        );
        assert_eq!(now["last_error"]["text"], "still refused");
        assert!(state.line().contains("unreachable since 2") && state.line().ends_with(": still refused"));
        state.listed();
        state.set(Watch::Denied { why: "403".into() });
        state.heard();
        let now = state.json(json!({}));
        assert_eq!((&now["state"], &now["why"], &now["lists"]), (&json!("synced"), &Value::Null, &json!(1)));
        assert_eq!(now["last_error"]["text"], "403");
    }
}
