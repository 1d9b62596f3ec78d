//! Generated agent traffic: mixes with a name, drawn from a seed, for those who have no recordings.
//!
//! A mix is a set of medians and chances; what it makes is a trace like any other. Sessions belong to tenants, whose
//! system prompts and tools their sessions have in common; a lead's turns append tool results, contexts are compacted
//! when they are full, and subagents start either with a prompt of their kind or with all that the lead has.

use crate::rng::Rng;
use crate::trace::{AgentBuilder, Item, Session, Trace, TraceBuilder, TraceError};

/// Tokens of a block of generated traces.
const BLOCK_TOKENS: u32 = 64;
/// A session that has been compacted goes on from so many tokens beyond its system prompt.
const SUMMARY_TOKENS: u32 = 6_000;

/// What sessions are like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mix {
    tenants: u64,
    system_tokens: f64,
    turns: f64,
    step_tokens: f64,
    output_tokens: f64,
    pause_ms: f64,
    /// Whether tools are waited for, and not people.
    calls: bool,
    context_tokens: u32,
    /// The chance of a turn to start subagents, and the fewest and the most of them.
    spawn: (f64, u64, u64),
    subagent_turns: f64,
    /// Subagents begin with the lead's context.
    forks: bool,
    /// Sessions come in bursts of so many at once, so far apart; 0 for a closed loop.
    burst: (u64, u64),
}

const AGENTS: Mix = Mix {
    tenants: 12,
    system_tokens: 14_000.0,
    turns: 30.0,
    step_tokens: 900.0,
    output_tokens: 220.0,
    pause_ms: 6_000.0,
    calls: true,
    context_tokens: 160_000,
    spawn: (0.04, 1, 4),
    subagent_turns: 8.0,
    forks: false,
    burst: (0, 0),
};

impl Mix {
    /// The names of all mixes.
    pub const NAMES: [&str; 4] = ["agents", "swarm", "chat", "bursts"];

    /// A mix by its name: `agents` are leads with a few subagents, `swarm` leads that fork 4 to 16 at a time, `chat`
    /// short conversations of many tenants, `bursts` agents that come in crowds.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "agents" => Some(AGENTS),
            "swarm" => Some(Self { turns: 8.0, spawn: (0.3, 4, 16), forks: true, ..AGENTS }),
            "chat" => Some(Self {
                tenants: 200,
                system_tokens: 1_500.0,
                turns: 5.0,
                step_tokens: 120.0,
                output_tokens: 300.0,
                pause_ms: 25_000.0,
                calls: false,
                spawn: (0.0, 0, 0),
                ..AGENTS
            }),
            "bursts" => Some(Self { burst: (24, 20_000), ..AGENTS }),
            _ => None,
        }
    }

    /// So many sessions of it.
    ///
    /// # Errors
    /// If they are more than a trace can hold, or none.
    pub fn generate(&self, sessions: usize, seed: u64) -> Result<Trace, TraceError> {
        let mut rng = Rng::new(seed ^ 0x6d69_7800);
        let prompts: Vec<u32> =
            (0..self.tenants).map(|_| rng.around(self.system_tokens, 0.4, 60_000)).collect();
        let mut builder = TraceBuilder::default();
        if self.burst.0 > 0 {
            builder.timed();
        }
        for number in 0..sessions as u64 {
            let tenant = rng.below(self.tenants);
            let mut writer = Writer {
                mix: self,
                session: Session::default(),
                next_id: 0,
                group: tenant as u32 * 2,
                system_tokens: prompts[tenant as usize],
                rng: Rng::new(rng.draw()),
            };
            writer.session.start_ms = number.checked_div(self.burst.0).unwrap_or(0) * self.burst.1;
            writer.lead();
            builder.add(BLOCK_TOKENS, writer.session)?;
        }
        builder.build()
    }
}

struct Writer<'a> {
    mix: &'a Mix,
    session: Session,
    next_id: u32,
    group: u32,
    system_tokens: u32,
    rng: Rng,
}

/// A context as it grows.
#[derive(Clone)]
struct Context {
    ids: Vec<u32>,
    tokens: u32,
}

/// What an agent does, before it is on chains.
enum Act {
    Turn { ids: Vec<u32>, prompt_tokens: u32, output_tokens: u32, pause_ms: u32 },
    Spawn(u32),
}

impl Writer<'_> {
    /// Appends so many tokens of new blocks.
    fn grow(&mut self, context: &mut Context, tokens: u32) {
        context.tokens += tokens;
        while (context.ids.len() as u32) < context.tokens / BLOCK_TOKENS {
            self.next_id += 1;
            context.ids.push(self.next_id);
        }
    }

    fn start(&mut self) -> Context {
        let mut context = Context { ids: Vec::new(), tokens: 0 };
        self.grow(&mut context, self.system_tokens);
        context
    }

    fn lead(&mut self) {
        self.session.agents.push(Vec::new());
        let mut context = self.start();
        let system = context.clone();
        let turns = self.rng.around(self.mix.turns, 0.8, 400);
        let mut acts = Vec::new();
        for turn in 0..turns {
            self.turn(&mut context, turn == 0, &mut acts);
            let (chance, fewest, most) = self.mix.spawn;
            if most > 0 && self.rng.unit() <= chance {
                let count = fewest + self.rng.below(most - fewest + 1);
                for _ in 0..count {
                    acts.push(Act::Spawn(self.subagent(&context)));
                }
            }
            if context.tokens > self.mix.context_tokens {
                context = system.clone();
                self.grow(&mut context, SUMMARY_TOKENS);
            }
        }
        let shared = self.system_tokens / BLOCK_TOKENS;
        self.session.agents[0] = self.write(acts, self.group, shared);
    }

    /// Writes down a subagent; answers with its number.
    fn subagent(&mut self, lead: &Context) -> u32 {
        let number = self.session.agents.len();
        self.session.agents.push(Vec::new());
        let (mut context, group, shared) = match self.mix.forks {
            true => (lead.clone(), self.group, self.system_tokens / BLOCK_TOKENS),
            false => {
                let mut own = Context { ids: Vec::new(), tokens: 0 };
                self.grow(&mut own, self.system_tokens / 2);
                (own, self.group + 1, self.system_tokens / 2 / BLOCK_TOKENS)
            }
        };
        let turns = self.rng.around(self.mix.subagent_turns, 0.5, 60);
        let mut acts = Vec::new();
        for turn in 0..turns {
            self.turn(&mut context, turn == 0, &mut acts);
        }
        self.session.agents[number] = self.write(acts, group, shared);
        number as u32
    }

    fn turn(&mut self, context: &mut Context, first: bool, acts: &mut Vec<Act>) {
        let step_tokens = self.rng.around(self.mix.step_tokens, 1.1, 40_000);
        self.grow(context, step_tokens);
        let output_tokens = self.rng.around(self.mix.output_tokens, 0.9, 8_000);
        let pause_ms = if first { 0 } else { self.rng.around(self.mix.pause_ms, 1.3, 300_000) };
        let (ids, prompt_tokens) = (context.ids.clone(), context.tokens);
        acts.push(Act::Turn { ids, prompt_tokens, output_tokens, pause_ms });
        self.grow(context, output_tokens);
    }

    fn write(&mut self, acts: Vec<Act>, group: u32, shared: u32) -> Vec<Item> {
        let chains = &mut self.session.chains;
        let mut agent = AgentBuilder::new(chains, BLOCK_TOKENS, group, shared);
        let last = acts.len().saturating_sub(1);
        for (at, act) in acts.into_iter().enumerate() {
            match act {
                Act::Spawn(number) => agent.spawn(number),
                Act::Turn { ids, prompt_tokens, output_tokens, pause_ms } => {
                    agent.turn(&ids, prompt_tokens, output_tokens, pause_ms);
                    if self.mix.calls && at < last {
                        agent.calls_tools();
                    }
                }
            }
        }
        agent.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_names_one_trace() {
        for name in Mix::NAMES {
            let mix = Mix::named(name).unwrap();
            let trace = mix.generate(20, 1).unwrap();
            assert_eq!(trace, mix.generate(20, 1).unwrap());
            assert_ne!(trace, mix.generate(20, 2).unwrap());
            assert_eq!((trace.session_count(), trace.timed), (20, name == "bursts"));
        }
        assert_eq!(Mix::named("Agents"), None);
        assert_eq!(AGENTS.generate(0, 1), Err(TraceError::Empty));
    }

    #[test]
    fn a_swarm_forks_what_its_lead_has() {
        let trace = Mix::named("swarm").unwrap().generate(10, 3).unwrap();
        let session = trace.sessions.iter().find(|s| s.agents.len() > 4).unwrap();
        let chain_of = |agent: usize| match session.agents[agent][0] {
            Item::Turn(turn) => &session.chains[turn.chain as usize].ids,
            Item::Spawn(_) => panic!("a turn comes first"),
        };
        let common = chain_of(0).iter().zip(chain_of(1)).take_while(|(a, b)| a == b).count();
        let siblings = chain_of(1).iter().zip(chain_of(2)).take_while(|(a, b)| a == b).count();
        assert!(common > 100 && siblings >= common, "{common} {siblings}");
    }

    #[test]
    fn contexts_stay_within_their_bound_and_are_compacted() {
        let trace = AGENTS.generate(60, 5).unwrap();
        let turns = trace.sessions.iter().flat_map(|s| s.agents.iter().flatten());
        let longest = turns.filter_map(|item| match item {
            Item::Turn(turn) => Some(turn.prompt_tokens),
            Item::Spawn(_) => None,
        });
        let longest = longest.max().unwrap();
        assert!((100_000..AGENTS.context_tokens + 40_001 + 8_000).contains(&longest), "{longest}");
        let compacted = trace.sessions.iter().filter(|s| s.chains.len() > s.agents.len());
        assert!(compacted.count() > 3);
    }
}
