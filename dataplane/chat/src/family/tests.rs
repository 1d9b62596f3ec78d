//! Families by their templates' signs.

use super::*;

#[test]
fn a_template_tells_its_family() {
    let of = |template| Family::of(template, &["<tool_call>", "<function=", "[TOOL_CALLS]"]);
    assert_eq!(of("{{- '<tool_call>\\n{\"name\": \"' }}"), Family::Hermes);
    assert_eq!(of("'<tool_call>\\n<function=' + call.name"), Family::Qwen3Coder);
    assert_eq!(of("'\\n<tool_call>' + name ~ '<arg_key>'"), Family::Glm);
    assert_eq!(of("'<minimax:tool_call>'"), Family::MiniMax);
    assert_eq!(of("'[TOOL_CALLS] ['"), Family::Mistral);
    assert_eq!(of("'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>'"), Family::DeepSeek);
    assert_eq!(of("'<|tool_calls_section_begin|>'"), Family::Kimi);
    assert_eq!(of("'<|start|>assistant<|channel|>final<|message|>'"), Family::Harmony);
    assert_eq!(
        of("{\"name\": function name, \"parameters\": dictionary of argument name"),
        Family::Llama3Json
    );
    assert_eq!(of("[func_name1(params_name1=params_value1"), Family::Pythonic);
    assert_eq!(Family::of("{{ messages }}", &["<|python_tag|>"]), Family::Llama3Json);
    assert_eq!(Family::of("{{ messages }}", &["[TOOL_CALLS]"]), Family::Mistral);
    assert_eq!(Family::of("{{ messages }}", &[]), Family::Hermes);
    let names: std::collections::HashSet<_> = Family::ALL.iter().map(|f| f.name()).collect();
    assert_eq!(names.len(), Family::ALL.len());
}
