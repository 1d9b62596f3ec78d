//! Each rule by hand, then all of them by chance against a list that is searched from end to end.

use proptest::prelude::*;

use super::programs::PROGRAMS_MAX;
use super::*;

fn tenant(name: u8) -> TenantId {
    TenantId::new(&format!("t{name}")).unwrap()
}

fn request(id: u64, of: u8, uncached_tokens: u32) -> Waiting {
    Waiting {
        id,
        tenant: tenant(of),
        weight: 1.0,
        program: 0,
        priority: 0,
        tier: 0,
        uncached_tokens,
        output_tokens: 0,
    }
}

fn queue(order: QueueOrder) -> RequestQueue {
    RequestQueue::new(QueueSettings { order, ..QueueSettings::default() })
}

fn drain(queue: &mut RequestQueue, now_ms: u64) -> Vec<u64> {
    std::iter::from_fn(|| queue.next(now_ms)).map(|waiting| waiting.id).collect()
}

#[test]
fn priorities_are_seconds_and_tiers_are_strict() {
    let mut queue = queue(QueueOrder::Arrival);
    let offers = [(1, 0, 0), (2, 0, 3), (3, 1, 0), (4, 0, -5), (5, 1, 1)];
    for (at, (id, tier, priority)) in offers.into_iter().enumerate() {
        let waiting = Waiting { tier, priority, ..request(id, 1, 100) };
        queue.offer(at as u64 * 2_000, waiting).unwrap();
    }
    assert_eq!(queue.overdue_at_ms(), Some(10_000));
    assert_eq!(drain(&mut queue, 9_000), [3, 5, 2, 1, 4]);
    assert!(queue.is_empty() && queue.tokens() == 0);
}

#[test]
fn the_shortest_goes_first_and_a_run_that_got_much_waits() {
    let mut shortest = queue(QueueOrder::Shortest);
    for (id, tokens, priority) in [(1, 900, 0), (2, 100, 0), (3, 700, 9), (4, 500, 0)] {
        shortest.offer(0, Waiting { priority, ..request(id, 1, tokens) }).unwrap();
    }
    assert_eq!(drain(&mut shortest, 1), [3, 2, 4, 1]);
    let mut queue = queue(QueueOrder::LeastAttained);
    let of = |id, program, tokens| Waiting { program, ..request(id, 1, tokens) };
    queue.offer(0, of(1, 7, 50_000)).unwrap();
    assert_eq!(drain(&mut queue, 0), [1]);
    queue.offer(1, of(2, 7, 10)).unwrap();
    queue.offer(2, of(3, 8, 10)).unwrap();
    assert_eq!(drain(&mut queue, 3), [3, 2]);
    // The second run's answer was long; much later neither counts.
    queue.answered(3, &of(3, 8, 10), 200_000);
    queue.offer(4, of(4, 8, 10)).unwrap();
    queue.offer(5, of(5, 7, 10)).unwrap();
    assert_eq!(drain(&mut queue, 6), [5, 4]);
}

#[test]
fn tenants_share_whatever_they_ask_for() {
    let mut queue = queue(QueueOrder::Arrival);
    for id in 0..300 {
        queue.offer(0, request(id, 1, 1_000)).unwrap();
    }
    for id in 300..600 {
        queue.offer(0, request(id, 2, 250)).unwrap();
    }
    let mut got = [0_u64; 3];
    for _ in 0..200 {
        let waiting = queue.next(1).unwrap();
        got[usize::from(waiting.tenant == tenant(2)) + 1] += u64::from(waiting.uncached_tokens);
    }
    assert!(got[1].abs_diff(got[2]) <= 1_000, "{got:?}");
    // One who comes later gets no more than his share from then on, and one of double weight twice as much.
    for id in 600..900 {
        queue.offer(2, Waiting { weight: 2.0, ..request(id, 3, 500) }).unwrap();
    }
    let mut got = [0_u64; 4];
    for _ in 0..150 {
        let waiting = queue.next(3).unwrap();
        let of = (1..4).find(|of| waiting.tenant == tenant(*of)).unwrap();
        got[of as usize] += u64::from(waiting.uncached_tokens);
    }
    assert!(got[1].abs_diff(got[2]) <= 1_500 && got[3].abs_diff(2 * got[1]) <= 3_000, "{got:?}");
}

#[test]
fn who_is_turned_away_hears_when_to_come_again() {
    let settings = QueueSettings {
        requests_max: 30,
        tenant_requests_max: 20,
        tokens_max: 40_000,
        ..QueueSettings::default()
    };
    let mut queue = RequestQueue::new(settings);
    for id in 0..20 {
        queue.offer(0, request(id, 1, 1_000)).unwrap();
    }
    let refused = queue.offer(0, request(20, 1, 1_000)).unwrap_err();
    assert_eq!(refused, Refusal::TenantFull { waiting: 20, retry_after_ms: 1_000 });
    assert!(refused.to_string().contains("try again in 1000 ms"));
    assert_eq!(refused.code().name(), "resource_exhausted");
    for id in 21..31 {
        queue.offer(0, request(id, 2, 1_000)).unwrap();
    }
    let full = queue.offer(0, request(31, 3, 1)).unwrap_err();
    assert!(matches!(full, Refusal::Full { .. }) && !full.to_string().contains("30"), "{full}");
    // Ten seconds in which a request a second went: thirty thousand tokens take about thirty more.
    for step in 1..=10_u64 {
        queue.next(step * 1_000);
        queue.offer(step * 1_000, request(100 + step, 4, 1_000)).unwrap();
    }
    let refused = queue.offer(10_000, request(40, 3, 1)).unwrap_err();
    assert!((24_000..36_000).contains(&refused.retry_after_ms()), "{refused:?}");
    for id in 21..25 {
        queue.remove(id);
    }
    assert!(matches!(queue.offer(10_000, request(41, 3, 30_000)), Err(Refusal::Full { .. })));
    assert!(queue.offer(10_000, request(41, 3, 5_000)).is_ok());
    let mut empty = RequestQueue::new(settings);
    assert!(empty.offer(0, request(1, 1, u32::MAX)).is_ok(), "a single one is let in");
}

#[test]
fn names_that_come_again_and_those_that_leave() {
    let mut queue = queue(QueueOrder::Arrival);
    queue.offer(0, request(1, 1, 10)).unwrap();
    queue.offer(1, request(2, 1, 10)).unwrap();
    queue.offer(2, request(1, 2, 30)).unwrap();
    assert_eq!((queue.len(), queue.tokens()), (2, 40));
    assert!(queue.remove(2).is_some() && queue.remove(2).is_none());
    assert_eq!(drain(&mut queue, 3), [1]);
    assert_eq!(queue.tenants.len(), 0, "nothing is kept of an empty queue");
}

#[test]
fn memory_is_bounded() {
    let mut programs = Programs::default();
    for program in 1..PROGRAMS_MAX as u64 + 20 {
        programs.add(program, &tenant(1), program, 5.0);
    }
    assert_eq!(programs.len(), PROGRAMS_MAX);
    assert_eq!(programs.order(&tenant(1), 1), 0.0);
    let settings = QueueSettings { tenant_requests_max: 2, ..QueueSettings::default() };
    let mut queue = RequestQueue::new(settings);
    queue.offer(0, request(0, 0, 1)).unwrap();
    for id in 1..10_000_u64 {
        let of = TenantId::new(&format!("x{id}")).unwrap();
        queue.offer(0, Waiting { tenant: of, tier: 1, ..request(id, 0, 1) }).unwrap();
        queue.next(0).unwrap();
    }
    assert!(queue.tenants.len() <= IDLE_TENANTS_MAX + 2, "{}", queue.tenants.len());
}

#[test]
fn orders_have_names_and_thresholds_mean_tokens() {
    for order in QueueOrder::ALL {
        assert_eq!(QueueOrder::from_name(order.name()), Some(order));
    }
    let with = |threshold| QueueSettings { threshold, ..QueueSettings::default() }.room_tokens();
    assert_eq!(
        (with(None), with(Some(0.5)), with(Some(f64::NAN))),
        (None, Some(4_096.0), Some(0.0))
    );
}

#[test]
fn who_asks_for_much_and_waits_long_does_not_hold_up_who_asks_for_little() {
    let mut queue = queue(QueueOrder::Arrival);
    for id in 0..1_024 {
        queue.offer(0, Waiting { tier: 3, priority: 60, ..request(id, 1, 1_000) }).unwrap();
    }
    // All of them are overdue for long when the other one comes, and comes again.
    for turn in 0..10 {
        let now_ms = 20_000 + turn * 300;
        queue.offer(now_ms, request(5_000 + turn, 2, 1_000)).unwrap();
        let gone = [queue.next(now_ms).unwrap().id, queue.next(now_ms).unwrap().id];
        assert!(gone.contains(&(5_000 + turn)), "{gone:?} in turn {turn}");
    }
}

#[test]
fn one_tenant_does_not_take_all_tokens() {
    let mut queue = queue(QueueOrder::Arrival);
    let most = queue.settings().tenant_tokens_max();
    assert_eq!(most, queue.settings().tokens_max / 4);
    queue.offer(0, request(1, 1, most as u32 - 10)).unwrap();
    let refused = queue.offer(0, request(2, 1, 11)).unwrap_err();
    assert_eq!(refused, Refusal::TenantFull { waiting: 1, retry_after_ms: 1_000 });
    queue.offer(0, request(3, 2, most as u32)).unwrap();
    queue.offer(0, request(4, 1, 10)).unwrap();
    let odd = |requests_max, tenant_requests_max, tokens_max| {
        let settings = QueueSettings::default();
        QueueSettings { requests_max, tenant_requests_max, tokens_max, ..settings }
            .tenant_tokens_max()
    };
    assert_eq!(odd(0, usize::MAX, u64::MAX), u64::MAX);
    assert_eq!((odd(usize::MAX, usize::MAX, 7), odd(8, 0, 7)), (7, 0));
}

#[test]
fn time_in_which_nobody_waited_makes_nobody_wait_longer() {
    let settings = QueueSettings { requests_max: 5, ..QueueSettings::default() };
    let mut queue = RequestQueue::new(settings);
    // A thousand tokens a second for half a minute.
    for step in 0..30_u64 {
        queue.offer(step * 1_000, request(step, 1, 1_000)).unwrap();
        queue.offer(step * 1_000, request(step + 100, 1, 1)).unwrap();
        queue.remove(if step == 0 { u64::MAX } else { step + 99 });
        queue.next(step * 1_000).unwrap();
    }
    drain(&mut queue, 30_000);
    let later_ms = 10_000_000;
    for id in 200..205 {
        queue.offer(later_ms, request(id, 1, 1_000)).unwrap();
    }
    let refused = queue.offer(later_ms, request(300, 1, 1_000)).unwrap_err();
    assert!((3_000..8_000).contains(&refused.retry_after_ms()), "{refused:?}");
    // A queue that stands still is another matter.
    let refused = queue.offer(later_ms + 60_000, request(300, 1, 1_000)).unwrap_err();
    assert_eq!(refused.retry_after_ms(), 60_000);
}

#[test]
fn the_overdue_get_every_fourth_turn_and_the_urgent_the_others() {
    let mut queue = queue(QueueOrder::Arrival);
    for id in 0..4 {
        queue.offer(0, request(id, 1, 100)).unwrap();
    }
    for id in 10..16 {
        queue.offer(1, Waiting { priority: 30, ..request(id, 1, 100) }).unwrap();
    }
    assert_eq!(drain(&mut queue, 20_000), [0, 10, 11, 12, 1, 13, 14, 15, 2, 3]);
}

#[test]
fn who_said_less_than_expected_gets_it_back_but_saves_nothing_up() {
    let served = |queue: &RequestQueue, of| queue.tenants[&tenant(of)].served;
    let mut queue = queue(QueueOrder::Arrival);
    let long = Waiting { output_tokens: 5_000, ..request(1, 1, 100) };
    queue.offer(0, long.clone()).unwrap();
    for id in 2..40 {
        queue.offer(0, request(id, (id % 2) as u8 + 1, 1_000)).unwrap();
    }
    assert_eq!(queue.next(0).unwrap(), long);
    assert_eq!(served(&queue, 1), 10_100.0);
    queue.answered(1, &long, 10);
    assert_eq!(served(&queue, 1), 120.0);
    // One who was away meanwhile has nothing to get back.
    queue.offer(2, request(50, 3, 100)).unwrap();
    let floor = served(&queue, 3);
    queue.answered(3, &Waiting { output_tokens: 90_000, ..request(51, 3, 1) }, 0);
    assert_eq!(served(&queue, 3), floor);
}

#[test]
fn a_request_that_waits_goes_by_what_its_run_has_got_by_now() {
    let mut queue = queue(QueueOrder::LeastAttained);
    let of = |id, program, tokens| Waiting { program, ..request(id, 1, tokens) };
    for (id, program) in [(1, 7), (2, 7), (3, 8), (4, 8)] {
        queue.offer(0, of(id, program, 1_000)).unwrap();
    }
    // By turns, though all of them came before either had got anything.
    assert_eq!(drain(&mut queue, 1), [1, 3, 2, 4]);
    // What was got long ago counts less than what was got just now, whenever the request came.
    queue.offer(2, of(5, 7, 1_000)).unwrap();
    queue.answered(400_000, &of(9, 8, 1_000), 2_000);
    queue.offer(400_000, of(6, 8, 1_000)).unwrap();
    assert_eq!(queue.next(400_000).map(|waiting| waiting.id), Some(5));
    // All of it given back is as if nothing had been.
    queue.answered(400_000, &Waiting { output_tokens: 90_000, ..of(9, 8, 1) }, 0);
    assert_eq!(queue.programs.order(&tenant(1), 8), 0.0);
}

#[test]
fn one_that_is_offered_again_and_refused_waits_on() {
    let settings = QueueSettings { tokens_max: 1_000, ..QueueSettings::default() };
    let mut queue = RequestQueue::new(settings);
    queue.offer(0, request(1, 1, 200)).unwrap();
    queue.offer(0, request(2, 2, 700)).unwrap();
    assert!(matches!(queue.offer(5, request(1, 3, 400)), Err(Refusal::Full { .. })));
    assert_eq!((queue.len(), queue.tokens(), queue.overdue_at_ms()), (2, 900, Some(10_000)));
    queue.offer(5, request(1, 3, 300)).unwrap();
    assert_eq!((queue.len(), queue.tokens()), (2, 1_000));
    assert_eq!(drain(&mut queue, 6), [2, 1]);
}

/// The same rules on a list.
#[derive(Default)]
struct Model {
    waiting: Vec<(u64, u64, Waiting)>,
    served: BTreeMap<TenantId, f64>,
    turn: u64,
    /// Turns since one was for those who are overdue.
    passed: Option<u32>,
}

impl Model {
    fn served(&self, of: &TenantId) -> f64 {
        self.served.get(of).copied().unwrap_or(0.0)
    }

    fn offer(&mut self, now_ms: u64, waiting: Waiting) {
        self.waiting.retain(|(_, _, other)| other.id != waiting.id);
        if self.waiting.is_empty() {
            self.served.clear();
        }
        let of = waiting.tenant.clone();
        if !self.waiting.iter().any(|(_, _, other)| other.tenant == of) && !self.waiting.is_empty()
        {
            let all = self.waiting.iter().map(|(_, _, other)| self.served(&other.tenant));
            let served = self.served(&of).max(all.fold(f64::INFINITY, f64::min));
            self.served.insert(of, served);
        }
        self.turn += 1;
        self.waiting.push((now_ms, self.turn, waiting));
    }

    fn next(&mut self, now_ms: u64, starvation_ms: u64) -> Option<Waiting> {
        let first = self.waiting.iter().min_by_key(|(arrived, turn, _)| (*arrived, *turn))?;
        let overdue = first.0 + starvation_ms <= now_ms;
        let passed = self.passed.map_or(OVERDUE_EVERY, |passed| passed + 1);
        self.passed = overdue.then_some(if passed >= OVERDUE_EVERY { 0 } else { passed });
        let turn = if overdue {
            let oldest = self.waiting.iter().min_by(|a, b| {
                let served = self.served(&a.2.tenant).total_cmp(&self.served(&b.2.tenant));
                served.then((a.0, a.1).cmp(&(b.0, b.1)))
            })?;
            match self.passed == Some(0) && oldest.0 + starvation_ms <= now_ms {
                true => oldest.1,
                false => {
                    let of = &oldest.2.tenant;
                    let own = self.waiting.iter().filter(|(_, _, w)| w.tenant == *of);
                    let place = |(arrived, turn, w): &&(u64, u64, Waiting)| {
                        let key = *arrived as i64 - 1_000 * i64::from(w.priority);
                        (u8::MAX - w.tier, key, *turn)
                    };
                    own.min_by_key(place)?.1
                }
            }
        } else {
            let effective =
                |arrived: u64, w: &Waiting| arrived as i64 - 1_000 * i64::from(w.priority);
            // The head of each tenant, then the head of all.
            let heads = self.served_heads(effective);
            heads
                .into_iter()
                .min_by(|a, b| {
                    (u8::MAX - a.0)
                        .cmp(&(u8::MAX - b.0))
                        .then(a.1.total_cmp(&b.1))
                        .then(a.2.cmp(&b.2))
                })?
                .2
        };
        let at = self.waiting.iter().position(|(_, other, _)| *other == turn)?;
        let (_, _, gone) = self.waiting.remove(at);
        let served = self.served(&gone.tenant) + gone.cost() as f64 / gone.weight();
        self.served.insert(gone.tenant.clone(), served);
        Some(gone)
    }

    fn served_heads(&self, effective: impl Fn(u64, &Waiting) -> i64) -> Vec<(u8, f64, u64)> {
        let mut tenants: Vec<_> = self.waiting.iter().map(|(_, _, w)| w.tenant.clone()).collect();
        tenants.sort();
        tenants.dedup();
        tenants
            .into_iter()
            .map(|of| {
                let own = self.waiting.iter().filter(|(_, _, w)| w.tenant == of);
                let head = own
                    .min_by_key(|(arrived, turn, w)| {
                        (u8::MAX - w.tier, effective(*arrived, w), *turn)
                    })
                    .unwrap();
                (head.2.tier, self.served(&of), head.1)
            })
            .collect()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Offer(Waiting),
    Next,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let fields = (0_u64..40, 0_u8..4, 0_u8..3, -20_i32..20, 0_u32..5_000, 0_u32..500, 0_u8..3);
    let offer = fields.prop_map(|(id, of, tier, priority, tokens, output_tokens, weight)| {
        let weight = [1.0, 2.0, 0.5][usize::from(weight)];
        Step::Offer(Waiting { tier, priority, output_tokens, weight, ..request(id, of, tokens) })
    });
    prop_oneof![3 => offer, 2 => Just(Step::Next), 1 => (0_u64..8_000).prop_map(Step::Wait)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// The queue does what the list does: it never holds back while somebody waits, and nobody who is overdue is
    /// passed by another of the same tenant.
    #[test]
    fn it_goes_by_the_rules(steps in proptest::collection::vec(step(), 1..120)) {
        let mut queue = queue(QueueOrder::Arrival);
        let mut model = Model::default();
        let mut now_ms = 0;
        for step in steps {
            match step {
                Step::Wait(ms) => now_ms += ms,
                Step::Offer(waiting) => {
                    queue.offer(now_ms, waiting.clone()).unwrap();
                    model.offer(now_ms, waiting);
                }
                Step::Next => {
                    let oldest = model.waiting.iter().map(|(arrived, _, _)| *arrived).min();
                    let overdue = oldest.is_some_and(|arrived| arrived + 10_000 <= now_ms);
                    let arrived = model.waiting.clone();
                    let next = queue.next(now_ms);
                    prop_assert_eq!(next.is_some(), oldest.is_some());
                    let expected = model.next(now_ms, 10_000);
                    if let Some(next) = &next && overdue && model.passed == Some(0) {
                        let of = arrived.iter().find(|(_, _, w)| w.id == next.id).map(|w| w.0);
                        let own = arrived.iter().filter(|(_, _, w)| w.tenant == next.tenant);
                        let own = own.map(|(arrived, _, _)| *arrived).min();
                        prop_assert!(of == own || own.is_some_and(|ms| ms + 10_000 > now_ms));
                    }
                    prop_assert_eq!(next, expected);
                }
            }
            prop_assert_eq!(queue.len(), model.waiting.len());
            let tokens: u64 = model.waiting.iter().map(|(_, _, w)| u64::from(w.uncached_tokens)).sum();
            prop_assert_eq!(queue.tokens(), tokens);
        }
    }

    /// Whatever a flood of others brings, of every tier and priority, nobody waits longer than the bound and the
    /// time that those need who were overdue before.
    #[test]
    fn nobody_starves(
        flood in proptest::collection::vec((0_u8..3, any::<u8>(), any::<i32>(), 1_u32..2_000), 50..300),
        order in 0_usize..3,
    ) {
        let order = QueueOrder::ALL[order];
        let mut queue = queue(order);
        let poor = Waiting { priority: i32::MIN, ..request(u64::MAX, 9, 60_000) };
        queue.offer(0, poor).unwrap();
        let mut gone_ms = None;
        // One goes each 100 ms, and two come: the queue never empties.
        for (step, (of, tier, priority, tokens)) in flood.iter().cycle().take(150).enumerate() {
            let now_ms = step as u64 * 100;
            for copy in 0..2 {
                let waiting = Waiting { tier: *tier, priority: *priority, ..request(step as u64 * 2 + copy, *of, *tokens) };
                queue.offer(now_ms, waiting).unwrap();
            }
            if queue.next(now_ms).unwrap().id == u64::MAX {
                gone_ms = Some(now_ms);
                break;
            }
        }
        prop_assert!(gone_ms.is_some_and(|ms| ms <= 10_000), "{:?}", gone_ms);
    }
}
