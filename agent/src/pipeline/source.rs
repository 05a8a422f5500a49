//! What the HTTP side sees of the running agent.

use super::inbox::{Input, Outside};
use super::shared::Shared;
use crate::accumulator::NodeNames;
use crate::incident::Incident;
use crate::kubernetes;
use crate::names::Table;
use crate::pods::Pods;
use crate::recorder::Series;
use crate::ship;
use crate::store::Store;
use crate::viewer::Source;
use arrow::array::RecordBatch;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long the loop may take to answer; it answers between two ticks.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

pub struct LiveSource {
    shared: Arc<Shared>,
    outside: Outside,
    series: Series,
    store: Arc<Store>,
    names: NodeNames,
    kubernetes: kubernetes::View,
    ship: ship::Status,
}

impl LiveSource {
    pub fn new(
        shared: Arc<Shared>,
        outside: Outside,
        series: Series,
        store: Arc<Store>,
        names: NodeNames,
        kubernetes: kubernetes::View,
        ship: ship::Status,
    ) -> Self {
        Self { shared, outside, series, store, names, kubernetes, ship }
    }
}

impl Source for LiveSource {
    async fn memory(&self, table: Table, from_us: i64) -> Result<Vec<RecordBatch>, String> {
        let (reply, answer) = oneshot::channel();
        if !self.outside.send(Input::Rows { table, from_us, reply }) {
            return Err("too many requests wait for the rows in memory; ask again in a moment".to_owned());
        }
        let pending = match tokio::time::timeout(ANSWER_WITHIN, answer).await {
            Ok(Ok(pending)) => pending,
            Ok(Err(_)) => return Err("the agent is closing; its data folder will have all rows".to_owned()),
            Err(_) => {
                let within = ANSWER_WITHIN.as_secs();
                return Err(format!(
                    "the rows in memory were not handed over within {within} s: the agent is busy; ask again"
                ));
            }
        };
        // a fault of ours in one of them is logged by the sealer; the rows on disk are served all the same
        let batches = pending.iter().filter_map(|p| p.batch(table, &self.names).ok());
        let batches = batches.filter(|b| b.num_rows() > 0);
        Ok(batches.map(|b| self.kubernetes.pods.fill(b)).collect())
    }

    fn incidents(&self) -> Vec<Incident> {
        self.shared.incidents()
    }

    fn status(&self) -> Value {
        let mut status = self.shared.status().unwrap_or_else(|| json!({}));
        if let Some(map) = status.as_object_mut() {
            map.insert("store".to_owned(), self.store.status());
            map.insert("kubernetes".to_owned(), self.kubernetes.json());
            map.insert("ship".to_owned(), self.ship.json());
        }
        status
    }

    fn ready(&self) -> Result<(), String> {
        self.shared
            .status()
            .map(|_| ())
            .ok_or_else(|| "the first round of sampling is not done yet".to_owned())
    }

    fn notes(&self) -> String {
        self.kubernetes.line()
    }

    fn pods(&self) -> Pods {
        self.kubernetes.pods.clone()
    }

    fn metrics(&self) -> String {
        self.series.render()
    }
}
