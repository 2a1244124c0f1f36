//! Several nodes as one cluster, each a child of its own that can be killed, frozen and started again.
//!
//! Every topic has a replica on each node, and a record is acknowledged by a majority of them. Clients can be told other
//! ports than the nodes listen on, so that a proxy stands between; what the nodes say to each other goes past it.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::{KafkaServer, Options, new_cluster_id};
use crate::dev::{Error, Folder, Progress, ports};

/// How long a cluster may take to have all of its brokers serving once each of them answers.
const COMPLETE_WITHIN: Duration = Duration::from_secs(60);

/// A node's place in a cluster. All ports are given: every node has to know those of the others before it starts.
#[derive(Debug, Clone)]
pub struct Place {
    /// Id of the node, from 1.
    pub node: usize,
    /// Id of the cluster, the same for all of its nodes.
    pub cluster: String,
    /// Ports of all controllers, in the order of the nodes.
    pub controllers: Vec<u16>,
    /// Port on which it listens for clients.
    pub client: u16,
    /// Port on which it listens for the other brokers.
    pub internal: u16,
    /// Port that clients are told: `client`, or that of a proxy before it.
    pub advertised: u16,
}

impl Place {
    /// Port of this node's controller.
    pub(super) fn controller(&self) -> u16 {
        self.controllers[self.node - 1]
    }

    /// Lines of a settings file: who it is, who the others are, and how much of the cluster has to have a record.
    pub(super) fn settings(&self) -> String {
        let Self { node, client, internal, advertised, controllers, .. } = self;
        let (controller, nodes) = (self.controller(), controllers.len());
        let majority = nodes / 2 + 1;
        let voters = (1..).zip(controllers).map(|(node, port)| format!("{node}@127.0.0.1:{port}"));
        let voters = voters.collect::<Vec<_>>().join(",");
        let mut text = format!(
            "node.id={node}\n\
             listeners=PLAINTEXT://127.0.0.1:{client},INTERNAL://127.0.0.1:{internal},CONTROLLER://127.0.0.1:{controller}\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{advertised},INTERNAL://127.0.0.1:{internal}\n\
             inter.broker.listener.name=INTERNAL\n\
             controller.quorum.voters={voters}\n"
        );
        for setting in [
            "default.replication.factor",
            "offsets.topic.replication.factor",
            "transaction.state.log.replication.factor",
            "share.coordinator.state.topic.replication.factor",
        ] {
            text.push_str(&format!("{setting}={nodes}\n"));
        }
        for setting in ["min.insync.replicas", "transaction.state.log.min.isr", "share.coordinator.state.topic.min.isr"]
        {
            text.push_str(&format!("{setting}={majority}\n"));
        }
        text
    }
}

/// A running cluster. Dropping it stops its nodes.
#[derive(Debug)]
pub struct KafkaCluster {
    nodes: Vec<KafkaServer>,
}

impl KafkaCluster {
    /// Starts a node for each of `advertised`, the ports that clients are told, each with a folder of its own below
    /// `folder`, and waits until all of them serve. `options` are those of every node; `port` is the first one tried.
    ///
    /// # Errors
    /// Those of the node that did not start; no other is left running then.
    pub fn start(folder: &Path, options: &Options, advertised: &[u16], progress: &Progress) -> Result<Self, Error> {
        let places = places(options.port, advertised)?;
        let nodes = thread::scope(|scope| {
            let starting: Vec<_> = places
                .into_iter()
                .map(|place| {
                    scope.spawn(move || {
                        let folder = Arc::new(Folder::open(&folder.join(format!("kafka-{}", place.node)))?);
                        let options = Options { place: Some(place), ..options.clone() };
                        KafkaServer::start(&folder, &options, progress)
                    })
                })
                .collect();
            let started = starting.into_iter().map(|node| node.join().expect("invariant: starting returns its errors"));
            // All are waited for before an error is told: what has started is stopped by being dropped.
            let started: Vec<Result<KafkaServer, Error>> = started.collect();
            started.into_iter().collect::<Result<Vec<_>, _>>()
        })?;
        let cluster = Self { nodes };
        cluster.wait_complete()?;
        Ok(cluster)
    }

    /// The nodes, in the order of their ids.
    pub fn nodes(&mut self) -> &mut [KafkaServer] {
        &mut self.nodes
    }

    /// A node by its id.
    pub fn node(&mut self, id: i32) -> Option<&mut KafkaServer> {
        self.nodes.get_mut(usize::try_from(id).ok()?.checked_sub(1)?)
    }

    /// Bootstrap servers of the nodes themselves, past every proxy. What they tell a client then is what is advertised.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        self.nodes.iter().map(KafkaServer::bootstrap).collect::<Vec<_>>().join(",")
    }

    /// Ports on which the nodes listen for clients, in the order of their ids.
    #[must_use]
    pub fn ports(&self) -> Vec<u16> {
        self.nodes.iter().map(|node| node.port).collect()
    }

    /// Waits until every node knows every other to serve.
    pub fn wait_complete(&self) -> Result<(), Error> {
        let deadline = Instant::now() + COMPLETE_WITHIN;
        for node in &self.nodes {
            while node.brokers_seen() < self.nodes.len() {
                if Instant::now() > deadline {
                    let log = node.kind.log.clone();
                    return Err(Error::NotReady { server: "kafka".into(), within: COMPLETE_WITHIN, log });
                }
                thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }
}

fn places(first_port: u16, advertised: &[u16]) -> Result<Vec<Place>, Error> {
    let mut taken = advertised.to_vec();
    let mut choose = || -> Result<u16, Error> {
        let port = ports::choose("kafka", None, first_port, &taken)?;
        taken.push(port);
        Ok(port)
    };
    let controllers = advertised.iter().map(|_| choose()).collect::<Result<Vec<_>, _>>()?;
    let cluster = new_cluster_id();
    let place = |(node, advertised): (usize, &u16)| {
        let (client, internal) = (choose()?, choose()?);
        let (cluster, controllers, advertised) = (cluster.clone(), controllers.clone(), *advertised);
        Ok(Place { node, cluster, controllers, client, internal, advertised })
    };
    (1..).zip(advertised).map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_three_nodes_want_three_replicas_and_two_in_sync() {
        let places = places(45_000, &[44_001, 44_002, 44_003]).unwrap();
        let text = places[1].settings();
        assert!(text.contains("node.id=2\n") && text.contains("PLAINTEXT://127.0.0.1:44002"), "{text}");
        assert!(text.contains("default.replication.factor=3\n"), "{text}");
        assert!(text.contains("min.insync.replicas=2\n"), "{text}");
        let mut all: Vec<u16> = places.iter().flat_map(|place| [place.client, place.internal]).collect();
        all.extend(&places[0].controllers);
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 9, "{places:?}");
    }
}
