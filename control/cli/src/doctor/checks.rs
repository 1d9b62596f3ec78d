//! The checks: id, group, what is wrong when one fails, and the cure.

/// What is looked at.
#[derive(Debug)]
pub(crate) struct Check {
    /// Stable: scripts and pages name it.
    pub(crate) id: &'static str,
    pub(crate) group: &'static str,
    /// What a failure means; a sentence without its full stop.
    pub(crate) about: &'static str,
    /// What to do, in Markdown.
    pub(crate) cure: &'static str,
}

impl Check {
    /// Where it is described.
    pub(crate) fn page(&self) -> String {
        format!("docs/operate/doctor.md#{}", self.id)
    }
}

/// In the order in which they are printed.
pub(crate) const GROUPS: [&str; 6] =
    ["Configuration", "Machine", "Place", "Identity", "Model", "Cluster"];

macro_rules! checks {
    ($($name:ident = $group:literal, $id:literal, $about:literal, $cure:literal;)*) => {
        $(pub(crate) static $name: Check =
            Check { id: $id, group: $group, about: $about, cure: $cure };)*
        /// All of them.
        pub(crate) static CHECKS: &[&Check] = &[$(&$name),*];
    };
}

checks! {
    CONFIG = "Configuration", "config",
        "The file, the environment or the flags hold a word that nobody reads, or a value that no flag takes",
        "The message names the place and the nearest word. `mainstay config check FILE` tries a file, `mainstay config show ROLE --origin` prints what counts and where it is from.";
    CONFIG_READABLE = "Configuration", "config-readable",
        "Other users can read a configuration file that holds API keys",
        "`chmod 600 FILE`, or keep keys in the cluster: `mainstay tenant key add`.";
    FILE_LIMIT = "Machine", "file-limit",
        "The process may open so few files that connections will be refused",
        "`ulimit -n 65536` in the shell that starts it, or `LimitNOFILE=65536` in the unit.";
    HUGE_PAGES = "Machine", "huge-pages",
        "Transparent huge pages are always on: the system clears two megabytes at a time under a request, which makes the slowest requests slower. Gateways turn them off for themselves",
        "`echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled`, and the same at boot.";
    CLOCK = "Machine", "clock",
        "This machine's clock says a time before this program was made; certificates will not hold",
        "Set the clock, and keep it set: `timedatectl set-ntp true`.";
    THREADS = "Machine", "threads",
        "The engine is given more threads than this machine has cores, which makes every step slower",
        "Leave out `--threads`, or give as many as there are cores.";
    PORT = "Place", "port",
        "Somebody listens already where this role would, or the address is not one of this machine",
        "`ss -ltnp` shows who has a port. Stop it, or choose another address with the flag that the message names.";
    EXPOSED = "Place", "exposed",
        "The role would listen beyond this machine in plain text, and refuses to",
        "Issue a certificate (`mainstay control cert`) and pass `--identity DIR`, or say `--insecure` where the network is yours alone.";
    ADVERTISE = "Place", "advertise",
        "Others would be told an address under which they can't reach this role",
        "`--advertise HOST:PORT` with a name or address that every other machine resolves to this one.";
    DATA_DIR = "Place", "data-dir",
        "The data directory can't be made or written",
        "`--data-dir DIR` with a folder of the user that runs it: `install -d -o USER DIR`.";
    DISK = "Place", "disk",
        "The disk of the data directory is nearly full; a member whose log can't be written ends",
        "Make room, or move the data directory to another disk while the member is stopped.";
    IDENTITY = "Identity", "identity",
        "The identity's folder lacks a file, or its files do not fit together",
        "`mainstay control cert --ca DIR --role ROLE --name NAME --host HOST --out DIR` writes all three of one piece.";
    CERTIFICATE_EXPIRED = "Identity", "certificate-expired",
        "The certificate's time is over",
        "`mainstay control cert` with the same `--out`; a running role takes it up within a minute.";
    CERTIFICATE_EARLY = "Identity", "certificate-early",
        "The certificate's time has not begun: this machine's clock, or that of the machine that signed, is wrong",
        "Set the clock of the one that is wrong; issue the certificate again if it was the signer's.";
    CERTIFICATE_ENDS = "Identity", "certificate-ends",
        "The certificate ends within two weeks",
        "`mainstay control cert` with the same `--out`; a running role takes it up within a minute.";
    CERTIFICATE_ROLE = "Identity", "certificate-role",
        "The certificate is for another role",
        "`mainstay control cert --role ROLE --out DIR`.";
    CERTIFICATE_NAME = "Identity", "certificate-name",
        "The certificate is not for the host under which others reach this role; they will refuse it",
        "`mainstay control cert --host HOST,… --out DIR` with every name and address that is dialled.";
    KEY_READABLE = "Identity", "key-readable",
        "Other users can read the identity's key",
        "`chmod 600 DIR/key.pem`; if somebody may have read it, issue another.";
    MODEL_FILES = "Model", "model-files",
        "The model's folder lacks a file that a checkpoint has",
        "A folder in Hugging Face layout: `config.json`, `tokenizer.json`, `*.safetensors`. `hf download NAME --local-dir DIR` makes one.";
    MEMORY = "Model", "memory",
        "The model's weights and the cache are larger than the memory that is free",
        "`--kv-bytes` with less, a smaller model, or a larger machine.";
    ENGINE = "Model", "engine",
        "The engine's library is not there, or is none",
        "`--engine native`, `--engine sim`, or a vendor's FILE.so; `mainstay engine check FILE.so` tries it.";
    CUDA = "Model", "cuda",
        "The GPU that `--device` asks for, or that a vendor's engine needs, is not there or will not do: no driver, an old one, no such device, too old a device",
        "Install the driver of the machine's GPU (550 or later; in a container ask for its GPUs), or leave out `--device`: the native engine computes on the CPU.";
    MEMBERS = "Cluster", "members",
        "A control member's name does not resolve, or nobody answers there",
        "Start it, open its port between the machines, or correct `--control` and `--members`.";
    MEMBERS_SPEAK = "Cluster", "members-speak",
        "Something answers that is no control member, or that takes this caller for nobody",
        "`--identity DIR` with an admin's certificate or `--admin-token-file FILE` on a secured cluster; the port is that of `mainstay control --listen`, 7400 by default.";
    QUORUM = "Cluster", "quorum",
        "No majority of the voters is reachable, or no member leads: pins can't be made",
        "Start the members that are down. One whose disk is lost: `mainstay control members rm ID`. Without a majority for good: `mainstay control restore` of a backup.";
    CLOCK_SKEW = "Cluster", "clock-skew",
        "The clocks of members, or of this machine, differ by seconds; cluster time follows the leader's, so ends of pins shift when another leads",
        "`timedatectl set-ntp true` on the machines that are named.";
    VERSIONS = "Cluster", "versions",
        "A member runs a program too far from the others: the cluster's version can't rise, or this program can't talk to it",
        "Upgrade one minor version at a time, members first: see [upgrades](upgrades.md).";
    LAG = "Cluster", "lag",
        "A member is far behind the log, and reads from it are old",
        "Look at its disk (`mainstay_control_fsync_seconds`) and its network; it catches up by itself once they are well.";
    WORKERS = "Cluster", "workers",
        "No worker is there, so no request can be served",
        "`mainstay worker --control HOST:PORT,…`; its standard error says why it did not register.";
    DRIFT = "Cluster", "drift",
        "An index differed from its worker and was mended; in health that never happens",
        "Watch `mainstay_control_index_drift`. If it rises again, report it with `mainstay bundle`.";
    GATEWAY = "Cluster", "gateway",
        "The gateway does not answer, is not ready, or refuses the key",
        "`mainstay gateway --control HOST:PORT,…`; the message has its own reasons. Keys: `mainstay tenant key add`, then `--api-key`.";
}
