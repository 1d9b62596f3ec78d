//! Rotary position settings in both of their JSON forms, kept apart from the rest because each
//! scaling rule has members of its own; `dynamic` and `longrope` depend on the running length,
//! which a shared cache of turned keys cannot have, and are refused.

use crate::LoadError;
use crate::json::Object;

/// The base of the frequencies that transformers assumes.
const THETA_DEFAULT: f64 = 10_000.0;
const THETA_MAX: f64 = 1e12;
const FACTOR_MAX: f64 = 1e6;
const ORIGINAL_CONTEXT_MAX: usize = super::CONTEXT_TOKENS_MAX;

/// The rule that gives each pair of a head its frequency.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// The plain geometric series.
    Default,
    /// All frequencies divided.
    Linear {
        /// By this.
        factor: f64,
    },
    /// Long waves divided, short ones kept, a ramp between.
    Llama3 {
        /// Divides the long waves.
        factor: f64,
        /// Where the ramp starts, in turns over the original context.
        low_freq_factor: f64,
        /// Where it ends.
        high_freq_factor: f64,
        /// The context before the extension.
        original_context: usize,
    },
    /// NTK-by-parts with a correction of the attention's temperature.
    Yarn {
        /// How many times longer the context got.
        factor: f64,
        /// Turns above which a frequency is kept.
        beta_fast: f64,
        /// Turns below which it is divided.
        beta_slow: f64,
        /// The context before the extension.
        original_context: usize,
        /// Multiplies cosine and sine.
        attention_factor: f64,
        /// Whether the ramp's ends are rounded outwards to whole pairs.
        truncate: bool,
    },
}

/// Base and rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeConfig {
    /// The base.
    pub theta: f64,
    /// The rule.
    pub scaling: RopeScaling,
}

impl RopeConfig {
    /// Reads `rope_parameters`, or `rope_theta` and `rope_scaling`.
    pub(crate) fn parse(json: &Object<'_>, context: usize) -> Result<Self, LoadError> {
        let old_theta = json.float("rope_theta", 1.0, THETA_MAX)?;
        let (section, name) = match json.object("rope_parameters")? {
            Some(section) => (Some(section), "rope_parameters"),
            None => (json.object("rope_scaling")?, "rope_scaling"),
        };
        let Some(section) = section else {
            let theta = old_theta.unwrap_or(THETA_DEFAULT);
            return Ok(Self { theta, scaling: RopeScaling::Default });
        };
        let theta =
            section.float("rope_theta", 1.0, THETA_MAX)?.or(old_theta).unwrap_or(THETA_DEFAULT);
        if section.float("partial_rotary_factor", 0.0, 1.0)?.unwrap_or(1.0) != 1.0 {
            return Err(unsupported(json, "a partial rotary embedding".into()));
        }
        let kind = match section.string("rope_type")? {
            Some(kind) => Some(kind),
            None => section.string("type")?,
        };
        let scaling = match kind {
            None if section
                .value
                .as_object()
                .is_some_and(|o| o.values().any(|v| v.is_object())) =>
            {
                return Err(unsupported(json, "a rotary embedding that differs by layer".into()));
            }
            None if section.get("factor").is_some() => {
                return Err(json.error(name, "has a `factor` but no `rope_type`"));
            }
            None | Some("default") => RopeScaling::Default,
            Some("linear") => RopeScaling::Linear { factor: factor(&section)? },
            Some("llama3") => llama3(&section, context)?,
            Some("yarn") => yarn(&section, context)?,
            Some(other) => return Err(unsupported(json, format!("the rope type {other:.40}"))),
        };
        Ok(Self { theta, scaling })
    }
}

fn unsupported(json: &Object<'_>, what: String) -> LoadError {
    LoadError::Unsupported {
        file: json.file.to_owned(),
        what,
        hint: "use a model with rope type default, linear, llama3 or yarn",
    }
}

fn factor(section: &Object<'_>) -> Result<f64, LoadError> {
    section.float("factor", 1.0, FACTOR_MAX)?.ok_or_else(|| section.error("factor", "is missing"))
}

fn original_context(section: &Object<'_>, context: usize) -> Result<usize, LoadError> {
    let member = "original_max_position_embeddings";
    Ok(section.size(member, ORIGINAL_CONTEXT_MAX)?.unwrap_or(context))
}

fn llama3(section: &Object<'_>, context: usize) -> Result<RopeScaling, LoadError> {
    let number = |member: &str| {
        section.float(member, 1e-3, FACTOR_MAX)?.ok_or_else(|| section.error(member, "is missing"))
    };
    let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
    if low >= high {
        return Err(section.error("low_freq_factor", "must be below `high_freq_factor`"));
    }
    Ok(RopeScaling::Llama3 {
        factor: factor(section)?,
        low_freq_factor: low,
        high_freq_factor: high,
        original_context: original_context(section, context)?,
    })
}

fn yarn(section: &Object<'_>, context: usize) -> Result<RopeScaling, LoadError> {
    let factor = factor(section)?;
    let beta_fast = section.float("beta_fast", 1e-3, FACTOR_MAX)?.unwrap_or(32.0);
    let beta_slow = section.float("beta_slow", 1e-3, FACTOR_MAX)?.unwrap_or(1.0);
    if beta_slow >= beta_fast {
        return Err(section.error("beta_slow", "must be below `beta_fast`"));
    }
    let temperature =
        |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let mscale = section.float("mscale", 0.0, FACTOR_MAX)?.filter(|m| *m != 0.0);
    let mscale_all = section.float("mscale_all_dim", 0.0, FACTOR_MAX)?.filter(|m| *m != 0.0);
    let implied = match (mscale, mscale_all) {
        (Some(one), Some(all)) => temperature(one) / temperature(all),
        _ => temperature(1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast,
        beta_slow,
        original_context: original_context(section, context)?,
        attention_factor: section.float("attention_factor", 1e-3, 1e3)?.unwrap_or(implied),
        truncate: section.boolean("truncate")?.unwrap_or(true),
    })
}

impl RopeConfig {
    /// The frequency of each pair of a head, and the factor on cosine and sine.
    #[must_use]
    pub fn frequencies(&self, head_dim: usize) -> (Vec<f32>, f32) {
        let plain = |pair: usize| self.theta.powf(-((2 * pair) as f64) / head_dim as f64);
        let pairs = 0..head_dim / 2;
        match self.scaling {
            RopeScaling::Default => (pairs.map(|i| plain(i) as f32).collect(), 1.0),
            RopeScaling::Linear { factor } => {
                (pairs.map(|i| (plain(i) / factor) as f32).collect(), 1.0)
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let rescale = |pair: usize| {
                    let turns = original_context as f64 * plain(pair) / std::f64::consts::TAU;
                    let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let kept = kept.clamp(0.0, 1.0);
                    (plain(pair) * (kept + (1.0 - kept) / factor)) as f32
                };
                (pairs.map(rescale).collect(), 1.0)
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                original_context,
                attention_factor,
                truncate,
            } => {
                let ramp = yarn_ramp(
                    self.theta,
                    head_dim,
                    original_context,
                    [beta_fast, beta_slow],
                    truncate,
                );
                let blend = |pair: usize| {
                    let divided = ((pair as f64 - ramp.0) / (ramp.1 - ramp.0)).clamp(0.0, 1.0);
                    (plain(pair) * (1.0 - divided + divided / factor)) as f32
                };
                (pairs.map(blend).collect(), attention_factor as f32)
            }
        }
    }
}

/// The pairs between which YaRN goes from kept to divided frequencies.
fn yarn_ramp(
    theta: f64,
    head_dim: usize,
    original_context: usize,
    betas: [f64; 2],
    truncate: bool,
) -> (f64, f64) {
    let dim = head_dim as f64;
    let pair_of = |turns: f64| {
        // A base of 1 has no falling frequencies; any ramp will do then.
        let base_log = theta.ln().max(f64::MIN_POSITIVE);
        dim * (original_context as f64 / (turns * std::f64::consts::TAU)).ln() / (2.0 * base_log)
    };
    let (mut low, mut high) = (pair_of(betas[0]), pair_of(betas[1]));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    let (low, high) = (low.max(0.0), high.min(dim - 1.0));
    // The reference widens an empty ramp by as much, so that nothing is divided by zero.
    (low, if low == high { high + 0.001 } else { high })
}
