//! From tokens to statements.
//!
//! Source: `jinja2.parser.Parser`; expressions are in `parse_expr`.

use std::sync::Arc;

use crate::ast::{Block, Body, Expr, ExprKind, For, Macro, Name, SpecialNames, Stmt, StmtKind, Target};
use crate::error::{Error, ErrorKind, Result};
use crate::lexer::{Token, tokenize};

/// How deep statements may nest in each other.
const MAX_NESTED_STATEMENTS: u32 = 64;
/// How deep an expression may nest, operators of a chain included.
const MAX_EXPR_DEPTH: u32 = 160;
/// How deep brackets and the like may nest while an expression is read.
const MAX_NESTED_EXPRS: u32 = 64;

pub(crate) struct Parser {
    tokens: Vec<(u32, Token)>,
    position: usize,
    nested_statements: u32,
    pub(crate) nested_exprs: u32,
    /// One entry for each macro around the current position, the innermost last.
    uses: Vec<Uses>,
    pub(crate) blocks: Vec<Arc<Block>>,
    loops: Vec<bool>,
}

#[derive(Default)]
struct Uses {
    read: SpecialNames,
    stored: SpecialNames,
}

/// The statements of a template, and its blocks.
pub(crate) fn parse(source: &str) -> Result<(Body, Vec<Arc<Block>>)> {
    let mut parser = Parser {
        tokens: tokenize(source)?,
        position: 0,
        nested_statements: 0,
        nested_exprs: 0,
        uses: Vec::new(),
        blocks: Vec::new(),
        loops: Vec::new(),
    };
    let body = parser.body(&[])?;
    Ok((body, parser.blocks))
}

impl Parser {
    pub(crate) fn peek(&self) -> &Token {
        self.tokens.get(self.position).map_or(&Token::End, |(_, token)| token)
    }

    fn peek_second(&self) -> &Token {
        self.tokens.get(self.position + 1).map_or(&Token::End, |(_, token)| token)
    }

    pub(crate) fn line(&self) -> u32 {
        self.tokens.get(self.position).or(self.tokens.last()).map_or(1, |(line, _)| *line)
    }

    pub(crate) fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.position += 1;
        token
    }

    pub(crate) fn is_operator(&self, operator: &str) -> bool {
        matches!(self.peek(), Token::Operator(found) if *found == operator)
    }

    pub(crate) fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Token::Name(found) if **found == *name)
    }

    pub(crate) fn second_is_operator(&self, operator: &str) -> bool {
        matches!(self.peek_second(), Token::Operator(found) if *found == operator)
    }

    pub(crate) fn second_is_name(&self, name: &str) -> bool {
        matches!(self.peek_second(), Token::Name(found) if **found == *name)
    }

    pub(crate) fn skip_operator(&mut self, operator: &str) -> bool {
        let found = self.is_operator(operator);
        self.position += usize::from(found);
        found
    }

    pub(crate) fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.position += usize::from(found);
        found
    }

    pub(crate) fn expect_operator(&mut self, operator: &str) -> Result<()> {
        match self.skip_operator(operator) {
            true => Ok(()),
            false => Err(self.expected(&format!("'{operator}'"))),
        }
    }

    fn expect_word(&mut self, word: &str) -> Result<()> {
        match self.skip_name(word) {
            true => Ok(()),
            false => Err(self.expected(&format!("'{word}'"))),
        }
    }

    pub(crate) fn expect_name(&mut self) -> Result<Name> {
        match self.next() {
            Token::Name(name) => Ok(name),
            _ => {
                self.position -= 1;
                Err(self.expected("a name"))
            }
        }
    }

    /// An error at the current token.
    pub(crate) fn expected(&self, what: &str) -> Error {
        Error::syntax(format!("expected {what}, got {}", describe(self.peek())), self.line())
    }

    /// An expression around others, unless they nest too deep.
    pub(crate) fn expr(&self, line: u32, kind: ExprKind) -> Result<Expr> {
        let expr = Expr::new(line, kind);
        match expr.depth > MAX_EXPR_DEPTH {
            true => Err(Error::limit(format!("{MAX_EXPR_DEPTH} nested expressions")).at(line)),
            false => Ok(expr),
        }
    }

    /// Counts a level of recursion; `nested_exprs` is lowered again by the caller.
    pub(crate) fn enter_expr(&mut self) -> Result<()> {
        if self.nested_exprs >= MAX_NESTED_EXPRS {
            return Err(Error::limit(format!("{MAX_NESTED_EXPRS} nested brackets")).at(self.line()));
        }
        self.nested_exprs += 1;
        Ok(())
    }

    /// Notes that `name` is read.
    pub(crate) fn note_read(&mut self, name: &str) {
        for uses in &mut self.uses {
            match name {
                "caller" => uses.read.caller |= !uses.stored.caller,
                "kwargs" => uses.read.kwargs |= !uses.stored.kwargs,
                "varargs" => uses.read.varargs |= !uses.stored.varargs,
                _ => {}
            }
        }
    }

    fn note_store(&mut self, name: &str) {
        for uses in &mut self.uses {
            match name {
                "caller" => uses.stored.caller = true,
                "kwargs" => uses.stored.kwargs = true,
                "varargs" => uses.stored.varargs = true,
                _ => {}
            }
        }
    }

    /// Statements up to a tag named in `ends`, whose name is the next token; up to the end of the template if there
    /// are none.
    fn body(&mut self, ends: &[&str]) -> Result<Body> {
        let mut body = Body::new();
        loop {
            let line = self.line();
            match self.next() {
                Token::Data(text) => body.push(Stmt { line, kind: StmtKind::Data(text) }),
                Token::VariableBegin => {
                    let value = self.tuple(true, &[], false)?;
                    body.push(Stmt { line, kind: StmtKind::Print(value) });
                    match self.next() {
                        Token::VariableEnd => {}
                        _ => {
                            self.position -= 1;
                            return Err(self.expected("'}}'"));
                        }
                    }
                }
                Token::BlockBegin => {
                    if ends.iter().any(|end| self.is_name(end)) {
                        return Ok(body);
                    }
                    self.statement(line, ends, &mut body)?;
                    self.block_end()?;
                }
                Token::End if ends.is_empty() => return Ok(body),
                Token::End => {
                    self.position -= 1;
                    let expected = ends.join(" or ");
                    return Err(Error::syntax(format!("unexpected end of template, expected {expected}"), line));
                }
                other => return Err(Error::syntax(format!("unexpected {}", describe(&other)), line)),
            }
        }
    }

    fn block_end(&mut self) -> Result<()> {
        match self.next() {
            Token::BlockEnd => Ok(()),
            _ => {
                self.position -= 1;
                Err(self.expected("'%}'"))
            }
        }
    }

    /// The end of a tag and the statements up to one of `ends`.
    fn statements(&mut self, ends: &[&str]) -> Result<Body> {
        self.skip_operator(":");
        self.block_end()?;
        self.body(ends)
    }

    /// The same, with the tag that ends them.
    fn statements_to(&mut self, end: &str) -> Result<Body> {
        let body = self.statements(&[end])?;
        self.position += 1;
        Ok(body)
    }

    fn statement(&mut self, line: u32, ends: &[&str], body: &mut Body) -> Result<()> {
        if self.nested_statements >= MAX_NESTED_STATEMENTS {
            return Err(Error::limit(format!("{MAX_NESTED_STATEMENTS} nested statements")).at(line));
        }
        self.nested_statements += 1;
        let tag = self.expect_name()?;
        let kind = match &*tag {
            "for" => self.for_loop()?,
            "if" => self.condition()?,
            "set" => self.set()?,
            "with" => self.with()?,
            "macro" => {
                let name = self.store_name()?;
                StmtKind::Macro(Arc::new(self.macro_body(Some(name), "endmacro")?))
            }
            "call" => self.call_block(line)?,
            "filter" => {
                let filter = self.filter_chain(None)?;
                StmtKind::Filter(filter, self.statements_to("endfilter")?)
            }
            "print" => {
                let mut separated = true;
                while !matches!(self.peek(), Token::BlockEnd) {
                    if !separated {
                        self.expect_operator(",")?;
                    }
                    let value = self.expression(true)?;
                    body.push(Stmt { line, kind: StmtKind::Print(value) });
                    separated = false;
                }
                self.nested_statements -= 1;
                return Ok(());
            }
            "block" => self.block()?,
            "autoescape" => {
                let value = self.expression(true)?;
                StmtKind::Autoescape(value, self.statements_to("endautoescape")?)
            }
            "generation" => {
                self.loops.push(false);
                let body = self.statements_to("endgeneration")?;
                self.loops.pop();
                StmtKind::Generation(body)
            }
            "break" | "continue" => {
                if !self.loops.last().copied().unwrap_or(false) {
                    return Err(Error::syntax(format!("{tag} outside of a loop"), line));
                }
                if &*tag == "break" { StmtKind::Break } else { StmtKind::Continue }
            }
            "include" | "import" | "from" | "extends" => self.load(&tag)?,
            _ => {
                let expected = match ends {
                    [] => String::new(),
                    ends => format!("; expected {}", ends.join(" or ")),
                };
                return Err(Error::syntax(format!("unknown tag '{tag}'{expected}"), line));
            }
        };
        body.push(Stmt { line, kind });
        self.nested_statements -= 1;
        Ok(())
    }

    fn for_loop(&mut self) -> Result<StmtKind> {
        let line = self.line();
        let target = self.target(&["in"], false)?;
        self.expect_word("in")?;
        let iter = self.tuple(false, &["recursive"], false)?;
        let test = if self.skip_name("if") { Some(self.expression(true)?) } else { None };
        let recursive = self.skip_name("recursive");
        self.loops.push(true);
        let body = self.statements(&["endfor", "else"])?;
        self.loops.pop();
        let otherwise = match self.skip_name("else") {
            true => self.statements_to("endfor")?,
            false => {
                self.position += 1;
                Body::new()
            }
        };
        let assigns_loop = writes_loop(&target) || body.iter().chain(&otherwise).any(assigns_loop);
        if assigns_loop {
            return Err(Error::syntax("cannot assign to the special variable loop inside of a loop", line));
        }
        Ok(StmtKind::For(Arc::new(For { target, iter, test, body, otherwise, recursive })))
    }

    fn condition(&mut self) -> Result<StmtKind> {
        let mut branches = Vec::new();
        loop {
            let test = self.tuple(false, &[], false)?;
            let body = self.statements(&["elif", "else", "endif"])?;
            branches.push((test, body));
            if self.skip_name("elif") {
                continue;
            }
            if self.skip_name("else") {
                return Ok(StmtKind::If(branches, self.statements_to("endif")?));
            }
            self.position += 1;
            return Ok(StmtKind::If(branches, Body::new()));
        }
    }

    fn set(&mut self) -> Result<StmtKind> {
        let target = self.target(&[], true)?;
        if self.skip_operator("=") {
            return Ok(StmtKind::Set(target, self.tuple(true, &[], false)?));
        }
        let filter = if self.is_operator("|") { Some(self.filter_expr_chain()?) } else { None };
        Ok(StmtKind::SetBlock(target, filter, self.statements_to("endset")?))
    }

    /// `|name(…)|name…` without a value.
    fn filter_expr_chain(&mut self) -> Result<Expr> {
        self.expect_operator("|")?;
        self.filter_chain(None)
    }

    fn with(&mut self) -> Result<StmtKind> {
        let mut assignments = Vec::new();
        while !matches!(self.peek(), Token::BlockEnd) {
            if !assignments.is_empty() {
                self.expect_operator(",")?;
            }
            let target = self.target(&[], false)?;
            self.expect_operator("=")?;
            assignments.push((target, self.expression(true)?));
        }
        Ok(StmtKind::With(assignments, self.statements_to("endwith")?))
    }

    fn store_name(&mut self) -> Result<Name> {
        let line = self.line();
        let name = self.expect_name()?;
        check_assignable(&name, line)?;
        self.note_store(&name);
        Ok(name)
    }

    /// The parameters, if any, and the body of a macro or `call` block.
    fn macro_body(&mut self, name: Option<Name>, end: &str) -> Result<Macro> {
        let line = self.line();
        let params = match name.is_some() || self.is_operator("(") {
            true => self.signature()?,
            false => Vec::new(),
        };
        self.macro_rest(line, name, params, end)
    }

    fn macro_rest(&mut self, line: u32, name: Option<Name>, params: Params, end: &str) -> Result<Macro> {
        self.uses.push(Uses::default());
        self.loops.push(false);
        let body = self.statements_to(end)?;
        self.loops.pop();
        let mut uses = self.uses.pop().unwrap_or_default().read;
        for (param, default) in &params {
            match &**param {
                "caller" if uses.caller && default.is_none() => {
                    let message = "the special argument caller must be omitted or be given a default";
                    return Err(Error::syntax(message, line));
                }
                "kwargs" => uses.kwargs = false,
                "varargs" => uses.varargs = false,
                _ => {}
            }
        }
        Ok(Macro { name, params, body, uses })
    }

    fn signature(&mut self) -> Result<Params> {
        let mut params = Params::new();
        self.expect_operator("(")?;
        while !self.is_operator(")") {
            if !params.is_empty() {
                self.expect_operator(",")?;
            }
            let line = self.line();
            let name = self.expect_name()?;
            check_assignable(&name, line)?;
            if params.iter().any(|(other, _)| *other == name) {
                return Err(Error::syntax(format!("duplicate argument '{name}'"), line));
            }
            let default = match self.skip_operator("=") {
                true => Some(self.expression(true)?),
                false if params.last().is_some_and(|(_, default)| default.is_some()) => {
                    return Err(Error::syntax("argument without default after one with default", line));
                }
                false => None,
            };
            params.push((name, default));
        }
        self.expect_operator(")")?;
        Ok(params)
    }

    fn call_block(&mut self, line: u32) -> Result<StmtKind> {
        let params = if self.is_operator("(") { self.signature()? } else { Params::new() };
        let call = self.expression(true)?;
        if !matches!(call.kind, ExprKind::Call(..)) {
            return Err(Error::syntax("expected a call", line));
        }
        let body = self.macro_rest(line, None, params, "endcall")?;
        Ok(StmtKind::Call(call, Arc::new(body)))
    }

    fn block(&mut self) -> Result<StmtKind> {
        let line = self.line();
        let name = self.expect_name()?;
        let scoped = self.skip_name("scoped");
        let required = self.skip_name("required");
        let mut around = (std::mem::take(&mut self.uses), std::mem::take(&mut self.loops));
        let body = self.statements_to("endblock")?;
        std::mem::swap(&mut around, &mut (std::mem::take(&mut self.uses), std::mem::take(&mut self.loops)));
        (self.uses, self.loops) = around;
        let is_blank = |stmt: &Stmt| matches!(&stmt.kind, StmtKind::Data(text) if text.trim().is_empty());
        if required && !body.iter().all(is_blank) {
            return Err(Error::syntax("required blocks can only contain comments or white space", line));
        }
        self.skip_name(&name);
        if self.blocks.iter().any(|block| block.name == name) {
            return Err(Error::syntax(format!("block '{name}' defined twice"), line));
        }
        let block = Arc::new(Block { name, body, required });
        self.blocks.push(block.clone());
        Ok(StmtKind::Block(block, scoped))
    }

    /// A statement that loads a template. It fails when it is reached, as in the reference.
    fn load(&mut self, tag: &str) -> Result<StmtKind> {
        self.expression(true)?;
        match tag {
            "include" => {
                if self.is_name("ignore") && self.second_is_name("missing") {
                    self.position += 2;
                }
                self.context_words();
                return Ok(StmtKind::Load("include"));
            }
            "extends" => return Ok(StmtKind::Load("extends")),
            "import" => {
                self.expect_word("as")?;
                self.store_name()?;
                self.context_words();
                return Ok(StmtKind::Load("import"));
            }
            _ => {}
        }
        self.expect_word("import")?;
        let mut names = 0;
        loop {
            if names > 0 {
                self.expect_operator(",")?;
            }
            if self.context_words() {
                break;
            }
            let line = self.line();
            if self.store_name()?.starts_with('_') {
                return Err(Error::syntax("names starting with an underline can not be imported", line));
            }
            names += 1;
            if self.skip_name("as") {
                self.store_name()?;
            }
            if self.context_words() || !self.is_operator(",") {
                break;
            }
        }
        Ok(StmtKind::Load("from"))
    }

    fn context_words(&mut self) -> bool {
        let found = (self.is_name("with") || self.is_name("without")) && self.second_is_name("context");
        self.position += if found { 2 } else { 0 };
        found
    }

    /// What an assignment writes to: a name, an attribute of a namespace where allowed, or several of them.
    fn target(&mut self, ends: &[&str], namespaces: bool) -> Result<Target> {
        let line = self.line();
        let value = self.target_tuple(ends, namespaces)?;
        let target = to_target(value, line)?;
        self.note_target(&target);
        Ok(target)
    }

    fn target_tuple(&mut self, ends: &[&str], namespaces: bool) -> Result<TargetExpr> {
        self.enter_expr()?;
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            if !items.is_empty() {
                self.expect_operator(",")?;
            }
            if self.is_tuple_end(ends) {
                break;
            }
            items.push(self.target_item(namespaces)?);
            if !self.is_operator(",") {
                break;
            }
            is_tuple = true;
        }
        self.nested_exprs -= 1;
        match items.pop() {
            Some(item) if !is_tuple => Ok(item),
            None => Err(self.expected("an expression")),
            Some(item) => {
                items.push(item);
                Ok(TargetExpr::Tuple(items))
            }
        }
    }

    fn target_item(&mut self, namespaces: bool) -> Result<TargetExpr> {
        if self.skip_operator("(") {
            let inner = match self.is_operator(")") {
                true => TargetExpr::Tuple(Vec::new()),
                false => self.target_tuple(&[], false)?,
            };
            self.expect_operator(")")?;
            return Ok(inner);
        }
        if !matches!(self.peek(), Token::Name(_)) {
            return Err(self.expected("a name to assign to"));
        }
        let name = self.expect_name()?;
        if namespaces && !is_constant(&name) && self.skip_operator(".") {
            let attribute = self.expect_name()?;
            self.note_read(&name);
            return Ok(TargetExpr::Attr(name, attribute));
        }
        Ok(TargetExpr::Name(name))
    }

    fn note_target(&mut self, target: &Target) {
        match target {
            Target::Name(name) => self.note_store(name),
            Target::Attr(..) => {}
            Target::Tuple(items) => items.iter().for_each(|item| self.note_target(item)),
        }
    }

    pub(crate) fn is_tuple_end(&self, ends: &[&str]) -> bool {
        matches!(self.peek(), Token::VariableEnd | Token::BlockEnd)
            || self.is_operator(")")
            || ends.iter().any(|end| self.is_name(end))
    }
}

type Params = Vec<(Name, Option<Expr>)>;

enum TargetExpr {
    Name(Name),
    Attr(Name, Name),
    Tuple(Vec<TargetExpr>),
}

fn to_target(value: TargetExpr, line: u32) -> Result<Target> {
    Ok(match value {
        TargetExpr::Name(name) => {
            check_assignable(&name, line)?;
            Target::Name(name)
        }
        TargetExpr::Attr(name, attribute) => Target::Attr(name, attribute),
        TargetExpr::Tuple(items) => {
            Target::Tuple(items.into_iter().map(|item| to_target(item, line)).collect::<Result<_>>()?)
        }
    })
}

fn is_constant(name: &str) -> bool {
    matches!(name, "true" | "false" | "True" | "False" | "none" | "None")
}

fn check_assignable(name: &str, line: u32) -> Result<()> {
    match is_constant(name) {
        true => Err(Error::syntax(format!("cannot assign to '{name}'"), line)),
        false => Ok(()),
    }
}

fn writes_loop(target: &Target) -> bool {
    match target {
        Target::Name(name) => &**name == "loop",
        Target::Attr(..) => false,
        Target::Tuple(items) => items.iter().any(writes_loop),
    }
}

/// Whether a statement inside a loop assigns to `loop`. Inner loops have been checked already.
fn assigns_loop(stmt: &Stmt) -> bool {
    let any = |body: &Body| body.iter().any(assigns_loop);
    match &stmt.kind {
        StmtKind::Set(target, _) => writes_loop(target),
        StmtKind::SetBlock(target, _, body) => writes_loop(target) || any(body),
        StmtKind::If(branches, otherwise) => branches.iter().any(|(_, body)| any(body)) || any(otherwise),
        StmtKind::With(assignments, body) => assignments.iter().any(|(target, _)| writes_loop(target)) || any(body),
        StmtKind::Filter(_, body) | StmtKind::Autoescape(_, body) | StmtKind::Generation(body) => any(body),
        StmtKind::Macro(declared) => any(&declared.body),
        StmtKind::Call(_, body) => any(&body.body),
        _ => false,
    }
}

pub(crate) fn describe(token: &Token) -> String {
    match token {
        Token::Data(_) => "text".to_owned(),
        Token::BlockBegin => "'{%'".to_owned(),
        Token::BlockEnd => "'%}'".to_owned(),
        Token::VariableBegin => "'{{'".to_owned(),
        Token::VariableEnd => "'}}'".to_owned(),
        Token::Name(name) => format!("'{name}'"),
        Token::Number(_) => "a number".to_owned(),
        Token::Str(_) => "a string".to_owned(),
        Token::Operator(operator) => format!("'{operator}'"),
        Token::End => "the end of the template".to_owned(),
    }
}

/// The error of the statements that need a loader.
pub(crate) fn no_loader(tag: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{{% {tag} %}} reads another template; a chat template has no others"))
}
