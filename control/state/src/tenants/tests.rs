//! Tenants and keys by hand: what a change answers, what a removal takes along, and the budget of pins.

use mainstay_types::{Command, ErrorCode, SecretHash};

use crate::testing::{Log, key_id, pin, prefix, put_key, put_tenant, small_limits, tenant};
use crate::{Limits, Machine, Outcome};

fn code(outcome: &Outcome) -> Option<ErrorCode> {
    match outcome {
        Outcome::Refused { code, .. } => Some(*code),
        _ => None,
    }
}

const DONE: Outcome = Outcome::Tenant { changed: true };
const KNOWN: Outcome = Outcome::Tenant { changed: false };

fn owner(machine: &Machine, hash: u8) -> Option<String> {
    machine.tenant_by_key(&SecretHash([hash; 32])).map(|t| t.name.to_string())
}

#[test]
fn a_key_is_its_tenants_until_one_of_them_goes() {
    let mut log = Log::new(small_limits());
    assert_eq!(code(&log.apply(put_key("acme", "a", 1))), Some(ErrorCode::NotFound));
    assert_eq!(log.apply(put_tenant("acme", None)), DONE);
    assert_eq!(log.apply(put_tenant("acme", None)), KNOWN);
    assert_eq!(log.apply(put_key("acme", "a", 1)), DONE);
    assert_eq!(log.apply(put_key("acme", "a", 1)), KNOWN);
    assert_eq!(owner(&log.machine, 1).as_deref(), Some("acme"));
    assert_eq!(owner(&log.machine, 2), None);
    // Another key under that name, and that key under another name or of another tenant.
    log.apply(put_tenant("zeta", None));
    for taken in [put_key("acme", "a", 2), put_key("acme", "b", 1), put_key("zeta", "a", 1)] {
        assert_eq!(code(&log.apply(taken)), Some(ErrorCode::AlreadyExists));
    }
    assert_eq!(log.apply(put_key("zeta", "a", 2)), DONE);
    let remove = Command::RemoveKey { tenant: tenant("acme"), key: key_id("a") };
    assert_eq!(log.apply(remove.clone()), DONE);
    assert_eq!(log.apply(remove), KNOWN);
    assert_eq!((owner(&log.machine, 1), owner(&log.machine, 2)), (None, Some("zeta".into())));
    let remove = Command::RemoveTenant { name: tenant("zeta") };
    assert_eq!(log.apply(remove.clone()), DONE);
    assert_eq!(log.apply(remove), KNOWN);
    assert_eq!(owner(&log.machine, 2), None);
    assert_eq!(log.machine.tenants().len(), 1);
}

#[test]
fn there_are_so_many_tenants_and_keys_and_no_more() {
    let mut log = Log::new(small_limits());
    for name in ["a", "b", "c"] {
        assert_eq!(log.apply(put_tenant(name, None)), DONE);
    }
    assert_eq!(code(&log.apply(put_tenant("d", None))), Some(ErrorCode::ResourceExhausted));
    assert_eq!(log.apply(put_tenant("c", Some(3))), DONE, "one that is there may change");
    for (name, key, hash) in [("a", "1", 1), ("a", "2", 2), ("a", "3", 3), ("b", "1", 4)] {
        assert_eq!(log.apply(put_key(name, key, hash)), DONE);
    }
    assert_eq!(code(&log.apply(put_key("a", "4", 9))), Some(ErrorCode::ResourceExhausted));
    assert_eq!(log.apply(put_key("b", "2", 5)), DONE);
    assert_eq!(code(&log.apply(put_key("c", "1", 9))), Some(ErrorCode::ResourceExhausted));
}

#[test]
fn a_tenants_own_budget_of_pins_stands_in_for_the_general_one() {
    let mut log = Log::new(Limits { pin_blocks_max: 60, ..small_limits() });
    let put = |id, length| Command::PutPin(pin(id, prefix(id, length)));
    assert_eq!(log.apply(put_tenant("acme", Some(10))), DONE);
    assert!(matches!(log.apply(put(1, 10)), Outcome::Pin { .. }));
    let Outcome::Refused { code, message } = log.apply(put(2, 10)) else { panic!("over budget") };
    assert_eq!(code, ErrorCode::ResourceExhausted);
    assert!(message.contains("pinned blocks of the tenant") && message.contains("of 10 left"));
    // The general budget of a tenant is 24.
    assert_eq!(log.apply(put_tenant("acme", Some(40))), DONE);
    assert!(matches!(log.apply(put(2, 30)), Outcome::Pin { .. }));
    // Less than what is pinned ends nothing, and lets nothing more in.
    assert_eq!(log.apply(put_tenant("acme", Some(5))), DONE);
    assert_eq!(log.machine.live_pin_count(), 2);
    assert!(matches!(log.apply(put(3, 3)), Outcome::Refused { .. }));
}

#[test]
fn a_cluster_that_had_a_tenant_goes_on_asking_for_keys() {
    let mut log = Log::new(small_limits());
    assert!(!log.machine.asks_for_keys());
    log.apply(put_tenant("acme", None));
    log.apply(Command::RemoveTenant { name: tenant("acme") });
    assert!(log.machine.asks_for_keys());
    let copy = Machine::decode(&log.machine.encode(), small_limits()).expect("an image");
    assert!(copy.asks_for_keys());
}
