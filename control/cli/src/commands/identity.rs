//! Certificates on the command line: an authority, a node's certificate, and the flags that use one.
//!
//! `--identity` names a folder; it is looked at again each minute and at SIGHUP, so that a certificate is renewed
//! by writing another into the folder.

use std::path::{Path, PathBuf};

use mainstay_identity::{Authority, ClusterSecret, DAYS_USUAL, Identity, Order, Role};
use tokio::signal::unix::{SignalKind, signal};

use super::addresses;
use crate::output::print;

/// Flags of roles that have a gRPC listener.
#[derive(clap::Args)]
pub(crate) struct ListenerArgs {
    #[command(flatten)]
    pub(crate) client: IdentityArgs,
    /// Listen beyond this machine in plain text, without an identity
    #[arg(long, conflicts_with = "identity")]
    pub(crate) insecure: bool,
}

/// Flags of roles that call others.
#[derive(clap::Args)]
pub(crate) struct IdentityArgs {
    /// A folder with ca.pem, cert.pem and key.pem, made by `mainstay control cert`; plain text without
    #[arg(long, value_name = "DIR")]
    identity: Option<PathBuf>,
}

impl IdentityArgs {
    /// The folder, if one is named.
    pub(crate) fn dir(&self) -> Option<&Path> {
        self.identity.as_deref()
    }

    /// Reads the folder, if one is named, and goes on looking at it.
    pub(crate) fn load(&self, role: Role) -> anyhow::Result<Option<Identity>> {
        let Some(dir) = &self.identity else { return Ok(None) };
        let identity = Identity::load_as(dir, role)?;
        tokio::spawn(identity.clone().keep_fresh());
        let mut hangups = signal(SignalKind::hangup())?;
        let asked = identity.clone();
        tokio::spawn(async move {
            while hangups.recv().await.is_some() {
                asked.reload_and_log();
            }
        });
        Ok(Some(identity))
    }
}

#[derive(clap::Args)]
pub(crate) struct InitArgs {
    /// Where to keep the authority; its key signs every node, so keep it off the nodes
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The cluster's name in all certificates
    #[arg(long, default_value = "mainstay")]
    cluster: String,
}

#[derive(clap::Args)]
pub(crate) struct CertArgs {
    /// The authority's folder, made by `mainstay control init`
    #[arg(long, value_name = "DIR")]
    ca: PathBuf,
    /// What its holder is for: control, gateway, worker or admin
    #[arg(long)]
    role: Role,
    /// Its holder's name; a worker registers under it
    #[arg(long)]
    name: String,
    /// Names and addresses under which others reach its holder, as HOST,… [default: this machine's loopback]
    #[arg(long)]
    host: Option<String>,
    /// How many days it lasts
    #[arg(long, default_value_t = DAYS_USUAL)]
    days: u32,
    /// Let a member sign certificates of nodes that join by a token: puts the authority's key into its folder
    #[arg(long)]
    sign: bool,
    /// Where to write ca.pem, cert.pem and key.pem, replacing what is there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(crate) fn init(args: &InitArgs) -> anyhow::Result<()> {
    let mut authority = Authority::create(&args.cluster)?;
    authority.save(&args.out)?;
    authority.save_admin_token(&args.out)?;
    let dir = args.out.display();
    print(&format!("authority of {} in {dir}; keep {dir}/ca-key.pem off the nodes", args.cluster));
    print(&format!("admin token in {dir}/admin-token, for --admin-token-file"));
    print(&format!(
        "next: mainstay control cert --ca {dir} --role control --name m1 --host HOST --out m1"
    ));
    Ok(())
}

pub(crate) fn cert(args: CertArgs) -> anyhow::Result<()> {
    let authority = Authority::load(&args.ca)?;
    let mut order = Order::new(args.role, args.name).days(args.days)?;
    if let Some(hosts) = &args.host {
        order.hosts = addresses(hosts);
    }
    if args.sign && args.role != Role::Control {
        anyhow::bail!("only members sign; leave out --sign, or give --role control");
    }
    let mut certified = authority.issue(&order)?;
    if args.sign {
        certified = certified.signing(&authority);
    }
    certified.save(&args.out)?;
    print(&issued(&args.out)?);
    Ok(())
}

/// Identities of roles that run in one process, signed by an authority that lives and ends with it.
pub(crate) struct InProcess(Authority);

impl InProcess {
    pub(crate) fn new(cluster: &str) -> anyhow::Result<Self> {
        Ok(Self(Authority::create(cluster)?))
    }

    /// An admin token for members whose identity is made later.
    pub(crate) fn admin_token(&mut self) -> anyhow::Result<ClusterSecret> {
        Ok(self.0.new_admin_token()?)
    }

    pub(crate) fn identity(&self, role: Role, node: &str) -> anyhow::Result<Option<Identity>> {
        Ok(Some(Identity::in_process(&self.0.issue(&Order::new(role, node))?)?))
    }
}

/// Reads back what was written: whom it names, where it may be served, for how long.
fn issued(dir: &Path) -> anyhow::Result<String> {
    let identity = Identity::load(dir)?;
    let days = (identity.remaining().as_secs() + 43_200) / 86_400;
    Ok(format!("{} in {}, for {days} days", identity.peer(), dir.display()))
}
