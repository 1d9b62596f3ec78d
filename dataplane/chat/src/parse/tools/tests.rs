//! Tools of all kinds: what the model sees of them, what it may be made to call, and what is refused.

use super::*;
use crate::parse::{parse_chat, parse_messages, parse_responses};
use crate::{Content, ErrorKind};
use std::fmt::Write;

fn responses(tools: Value, more: Value) -> Result<Request, ApiError> {
    let mut body = json!({"model": "m", "input": "x", "tools": tools});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    parse_responses(body.to_string().as_bytes())
}

/// One line a tool: the model's name, the client's, and what it is.
fn shown(request: &Request) -> String {
    let mut out = String::new();
    for tool in request.conversation.tools.iter() {
        let space = tool.namespace.as_deref().unwrap_or("-");
        let hidden = if tool.is_callable() { "" } else { " hidden" };
        writeln!(out, "{} {space}/{} {:?}{hidden}", tool.name, tool.told_name(), tool.kind)
            .unwrap();
    }
    out
}

fn function(name: &str) -> Value {
    json!({"type": "function", "name": name, "parameters": {"type": "object"}})
}

#[test]
fn every_kind_of_tool_is_kept() {
    let lark = json!({"type": "grammar", "syntax": "lark", "definition": "start: /a/"});
    let tools = json!([
        {"type": "custom", "name": "exec", "description": "Runs", "format": lark},
        {"type": "custom", "name": "free"},
        {"type": "function", "name": "strictly", "strict": true, "parameters": {"type": "object"}},
        {"type": "web_search", "external_web_access": false},
        {"type": "namespace", "name": "a", "tools": [function("go"), function("go")]},
        {"type": "namespace", "name": "b", "tools": [function("go"), {"type": "custom", "name": "exec"}]},
    ]);
    let request = responses(tools, json!({})).unwrap();
    expect_test::expect![[r#"
        exec -/exec Custom { grammar: Some(Grammar { syntax: Lark, text: "start: /a/" }) }
        free -/free Custom { grammar: None }
        strictly -/strictly Function { strict: true }
        web_search -/web_search Hosted hidden
        go a/go Function { strict: false }
        b__go b/go Function { strict: false }
        b__exec b/exec Custom { grammar: None }
    "#]]
    .assert_eq(&shown(&request));
    assert_eq!(request.conversation.tools[0].schema["required"], json!(["input"]));
    assert_eq!(request.warnings.len(), 2, "{:?}", request.warnings);
    assert_eq!(request.told_header().as_deref(), Some("hosted-tool-left-out;count=1"));
}

#[test]
fn a_call_of_a_renamed_tool_keeps_the_models_name() {
    let tools = json!([
        {"type": "namespace", "name": "a", "tools": [function("go")]},
        {"type": "namespace", "name": "b", "tools": [function("go")]},
    ]);
    let call = |namespace: &str| json!({"type": "function_call", "call_id": namespace, "namespace": namespace, "name": "go", "arguments": "{}"});
    let request = responses(tools, json!({"input": [call("a"), call("b"), call("c")]})).unwrap();
    let names: Vec<&str> = request.conversation.messages[0]
        .blocks
        .iter()
        .filter_map(|block| match &block.content {
            Content::ToolCall { name, .. } => Some(name.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(names, ["go", "b__go", "go"]);
}

#[test]
fn free_text_comes_and_goes_in_chat() {
    let body = json!({"model": "m", "tools": [
            {"type": "custom", "custom": {"name": "exec", "format":
                {"type": "grammar", "grammar": {"syntax": "regex", "definition": "a+"}}}}],
        "messages": [{"role": "user", "content": "x"},
            {"role": "assistant", "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "exec", "input": "1+1"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "2"}],
        "tool_choice": {"type": "custom", "custom": {"name": "exec"}}});
    let request = parse_chat(body.to_string().as_bytes()).unwrap();
    let grammar = Grammar { syntax: GrammarSyntax::Regex, text: "a+".to_owned() };
    assert_eq!(request.conversation.tools[0].kind, ToolKind::Custom { grammar: Some(grammar) });
    assert_eq!(request.conversation.tool_choice, ToolChoice::Named("exec".to_owned()));
    let Content::ToolCall { arguments, .. } = &request.conversation.messages[1].blocks[0].content
    else {
        panic!("no call");
    };
    assert_eq!(arguments, r#"{"input":"1+1"}"#);
}

#[test]
fn choices_are_of_tools_that_exist() {
    let tools = || json!([function("f"), function("g"), {"type": "web_search"}, {"type": "custom", "name": "c"}]);
    let choice = |choice: Value| responses(tools(), json!({"tool_choice": choice}));
    let chosen = |value: Value| choice(value).unwrap().conversation.tool_choice;
    assert_eq!(chosen(json!("required")), ToolChoice::Required);
    assert_eq!(chosen(json!({"type": "custom", "name": "c"})), ToolChoice::Named("c".into()));
    let some = json!({"type": "allowed_tools", "mode": "required", "tools": [
        {"type": "function", "name": "g"}, {"type": "web_search"}]});
    assert_eq!(
        chosen(some.clone()),
        ToolChoice::Allowed { names: vec!["g".to_owned()], required: true }
    );
    assert_eq!(choice(some.clone()).unwrap().responses.unwrap().tool_choice, Some(some));
    let none = json!({"type": "allowed_tools", "mode": "auto", "tools": []});
    assert_eq!(chosen(none), ToolChoice::None);
    assert_eq!(chosen(json!({"type": "web_search"})), ToolChoice::Auto);
    for bad in [
        json!({"type": "function", "name": "nobody"}),
        json!({"type": "function", "name": "web_search"}),
        json!({"type": "allowed_tools", "mode": "auto", "tools": [function("nobody")]}),
        json!({"type": "allowed_tools", "mode": "required", "tools": []}),
        json!({"type": "allowed_tools", "mode": "maybe", "tools": [function("f")]}),
        json!({"type": "allowed_tools"}),
        json!("sometimes"),
        json!(5),
    ] {
        let error = choice(bad.clone()).expect_err("refused");
        assert_eq!(error.kind, ErrorKind::InvalidRequest, "{bad}");
        assert!(error.param.unwrap().starts_with("tool_choice"), "{bad}");
    }
}

#[test]
fn grammars_have_a_limit_and_a_known_syntax() {
    let with = |format: Value| {
        responses(json!([{"type": "custom", "name": "c", "format": format}]), json!({}))
    };
    let long = "x".repeat(GRAMMAR_BYTES_MAX + 1);
    let error = with(json!({"type": "grammar", "syntax": "lark", "definition": long})).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("tools[0].format.definition"));
    let odd = with(json!({"type": "grammar", "syntax": "yacc", "definition": "x"})).unwrap();
    assert_eq!(odd.conversation.tools[0].kind, ToolKind::Custom { grammar: None });
    assert_eq!(odd.warnings.len(), 1);
    assert!(with(json!({"type": "text"})).unwrap().warnings.is_empty());
}

#[test]
fn deferred_tools_wait_until_they_are_referred_to() {
    let body = |content: Value| {
        let tool = |name: &str, later: bool| json!({"name": name, "input_schema": {"type": "object"}, "defer_loading": later});
        let body = json!({"model": "m", "max_tokens": 5,
            "tools": [tool("later", true), tool("never", true), tool("now", false)],
            "messages": [{"role": "user", "content": "x"},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "now", "input": {}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": content}]}]});
        parse_messages(body.to_string().as_bytes()).unwrap()
    };
    let callable = |request: &Request| -> Vec<String> {
        request.conversation.callable().map(|tool| tool.name.clone()).collect()
    };
    assert_eq!(callable(&body(json!("nothing"))), ["now"]);
    let reference = |name: &str| json!({"type": "tool_reference", "tool_name": name});
    // Behind the others: what they make up stays a prefix.
    let found = body(json!([reference("later"), reference("unknown")]));
    assert_eq!(callable(&found), ["now", "later"]);
    let last = &found.conversation.messages[2].blocks[0].content;
    assert!(format!("{last:?}").contains("[tool later can be called now]"), "{last:?}");
}

#[test]
fn content_that_holds_text_is_read() {
    let body = json!({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": [
        {"type": "document", "title": "Notes", "source": {"type": "text", "media_type": "text/plain", "data": "alpha"}},
        {"type": "search_result", "source": "s", "title": "", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"type": "document", "source": {"type": "base64", "data": "AAAA"}}]}]});
    let request = parse_messages(body.to_string().as_bytes()).unwrap();
    let texts: Vec<&Content> =
        request.conversation.messages[0].blocks.iter().map(|b| &b.content).collect();
    let text = |text: &str| Content::Text(text.to_owned());
    assert_eq!(
        texts,
        [&text("Notes\nalpha"), &text("a\nb"), &text("[document left out: this model reads text]")]
    );
}
