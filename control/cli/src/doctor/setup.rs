//! What a role would be started with, as far as checks want to know.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::ArgMatches;
use mainstay_identity::Role;

use crate::commands::addresses;
use crate::config::default_data_dir;

/// A role and its settings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setup {
    pub(crate) role: String,
    /// Flags and the addresses they would bind.
    pub(crate) listen: Vec<(&'static str, SocketAddr)>,
    pub(crate) insecure: bool,
    pub(crate) advertise: Option<String>,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) identity: Option<PathBuf>,
    pub(crate) config: Option<PathBuf>,
    /// Whether that file holds API keys.
    pub(crate) holds_keys: bool,
    pub(crate) engine: Option<String>,
    pub(crate) model_dir: Option<PathBuf>,
    pub(crate) kv_bytes: Option<u64>,
    pub(crate) threads: Option<usize>,
    /// Where the native engine shall compute.
    pub(crate) device: Option<String>,
    /// Other members, or those that a gateway or worker calls.
    pub(crate) members: Vec<String>,
}

/// A typed value, where the role has such a flag and it is set.
fn get<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, id: &str) -> Option<T> {
    matches.try_get_one::<T>(id).ok().flatten().cloned()
}

impl Setup {
    pub(crate) fn of(role: &str, matches: &ArgMatches, holds_keys: bool) -> Self {
        let binds = [
            ("--listen", "listen"),
            ("--control-listen", "control_listen"),
            ("--metrics-listen", "metrics_listen"),
            ("--profiling-listen", "profiling_listen"),
        ];
        let listen = binds.into_iter().filter_map(|(flag, id)| Some((flag, get(matches, id)?)));
        let data_dir = get(matches, "data_dir").or_else(|| match role {
            "serve" => Some(default_data_dir("serve")),
            "control" => {
                let id: u64 = get(matches, "node_id").unwrap_or(1);
                Some(default_data_dir(&format!("control-{id}")))
            }
            _ => None,
        });
        let own: Vec<String> =
            get::<String>(matches, "control").map(|text| addresses(&text)).unwrap_or_default();
        let first = get::<String>(matches, "members").map(|text| addresses(&text));
        let first = first.unwrap_or_default();
        let named = first.iter().filter_map(|item| Some(item.split_once('=')?.1.to_owned()));
        // A gateway's and a worker's --join is a token, a member's a list of members.
        let joined = get::<String>(matches, "join").filter(|_| role == "control");
        let joined = joined.map(|text| addresses(&text)).unwrap_or_default();
        Self {
            role: role.to_owned(),
            listen: listen.collect(),
            insecure: get(matches, "insecure").unwrap_or(false),
            advertise: get(matches, "advertise"),
            data_dir,
            identity: get(matches, "identity"),
            config: get(matches, "config"),
            holds_keys,
            engine: get(matches, "engine"),
            model_dir: get(matches, "model_dir"),
            kv_bytes: get(matches, "kv_bytes"),
            threads: get(matches, "threads"),
            device: get(matches, "device"),
            members: own.into_iter().chain(named).chain(joined).collect(),
        }
    }

    /// The role in certificates.
    pub(crate) fn certified_role(&self) -> Option<Role> {
        self.role.parse().ok()
    }

    /// Whether others dial its gRPC port.
    pub(crate) fn is_dialled(&self) -> bool {
        matches!(self.role.as_str(), "control" | "worker")
    }
}
