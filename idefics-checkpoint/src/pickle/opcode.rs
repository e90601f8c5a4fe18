//! The opcodes of pickle protocols 0 to 5, with their names in Python's `pickletools`.

/// Defines constants for the supported opcodes, and a function that names any opcode for error messages.
macro_rules! opcodes {
    ($($code:literal $name:ident;)* refused: $($refused:literal $refused_name:ident;)*) => {
        $(pub(super) const $name: u8 = $code;)*

        /// Returns the name of an opcode.
        pub(super) fn name(opcode: u8) -> &'static str {
            match opcode {
                $($code => stringify!($name),)*
                $($refused => stringify!($refused_name),)*
                _ => "unknown",
            }
        }
    };
}

opcodes! {
    // Program structure.
    0x80 PROTO;
    0x95 FRAME;
    b'.' STOP;
    // Constants.
    b'N' NONE;
    0x88 NEWTRUE;
    0x89 NEWFALSE;
    b'J' BININT;
    b'K' BININT1;
    b'M' BININT2;
    0x8a LONG1;
    b'X' BINUNICODE;
    0x8c SHORT_BINUNICODE;
    // Tuples and dictionaries.
    b'(' MARK;
    b')' EMPTY_TUPLE;
    0x85 TUPLE1;
    0x86 TUPLE2;
    0x87 TUPLE3;
    b't' TUPLE;
    b'}' EMPTY_DICT;
    b's' SETITEM;
    b'u' SETITEMS;
    // Globals, storages, calls and attributes.
    b'c' GLOBAL;
    0x93 STACK_GLOBAL;
    b'Q' BINPERSID;
    b'R' REDUCE;
    b'b' BUILD;
    // The memo.
    b'q' BINPUT;
    b'r' LONG_BINPUT;
    0x94 MEMOIZE;
    b'h' BINGET;
    b'j' LONG_BINGET;
    refused:
    b'I' INT;
    b'L' LONG;
    0x8b LONG4;
    b'S' STRING;
    b'T' BINSTRING;
    b'U' SHORT_BINSTRING;
    b'B' BINBYTES;
    b'C' SHORT_BINBYTES;
    0x8e BINBYTES8;
    0x96 BYTEARRAY8;
    0x97 NEXT_BUFFER;
    0x98 READONLY_BUFFER;
    b'V' UNICODE;
    0x8d BINUNICODE8;
    b'F' FLOAT;
    b'G' BINFLOAT;
    b']' EMPTY_LIST;
    b'a' APPEND;
    b'e' APPENDS;
    b'l' LIST;
    b'd' DICT;
    0x8f EMPTY_SET;
    0x90 ADDITEMS;
    0x91 FROZENSET;
    b'0' POP;
    b'2' DUP;
    b'1' POP_MARK;
    b'g' GET;
    b'p' PUT;
    0x82 EXT1;
    0x83 EXT2;
    0x84 EXT4;
    b'i' INST;
    b'o' OBJ;
    0x81 NEWOBJ;
    0x92 NEWOBJ_EX;
    b'P' PERSID;
}
