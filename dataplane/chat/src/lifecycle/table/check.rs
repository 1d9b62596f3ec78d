//! The table's indexes, held against its sessions and its limits.
//!
//! They repeat each other so that nothing has to be searched; tests call this after every step, since one that is
//! forgotten shows only much later.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Table;

impl Table {
    /// Holds the indexes against the sessions and the limits.
    pub(in crate::lifecycle) fn check(&self) {
        let mut counts = [0; 4];
        let mut sizes = BTreeSet::new();
        for (name, tenant) in &self.tenants {
            assert!(!tenant.sessions.is_empty(), "{name} has none");
            assert!(tenant.sessions.len() <= self.limits.sessions_per_tenant_max);
            assert_eq!(tenant.due.len(), tenant.sessions.len());
            sizes.insert((tenant.sessions.len(), Arc::clone(name)));
            for (key, session) in &tenant.sessions {
                counts[session.state() as usize] += 1;
                assert!(session.turning <= session.in_flight);
                assert_eq!(tenant.due.get(&session.due), Some(key));
                assert_eq!(self.due.get(&session.due), Some(&(Arc::clone(name), Arc::clone(key))));
                if let Some(parent) = &session.parent {
                    assert!(tenant.children.get(parent).is_some_and(|all| all.contains(key)));
                }
            }
            let known = |key: &Arc<str>| tenant.sessions.contains_key(key);
            assert!(tenant.children.values().all(|all| !all.is_empty() && all.iter().all(known)));
            assert!(tenant.heads.values().all(known));
        }
        assert_eq!((self.counts, &self.sizes), (counts, &sizes));
        assert_eq!(self.due.len(), counts.iter().sum::<usize>());
        assert!(self.due.len() <= self.limits.sessions_max);
    }
}
