//! Modules whose field names do not appear in the tensor names.

/// Implements [`Module`](burn::module::Module) for a struct of modules that share one level of names in a
/// checkpoint: the field names of the struct are left out of the tensor paths.
///
/// ```
/// use burn::module::Module;
/// use burn::tensor::Device;
/// use idefics_nn::{Embedding, RmsNorm, flat_module};
///
/// #[derive(Module, Debug)]
/// struct Body {
///     norm: RmsNorm,
/// }
///
/// #[derive(Clone, Debug)]
/// struct Tower {
///     table: Embedding, // its tensor is `weight`
///     body: Body,       // `norm.weight`
/// }
/// flat_module!(Tower { table, body });
/// ```
#[macro_export]
macro_rules! flat_module {
    ($module:ident { $($part:ident),+ $(,)? }) => {
        impl ::burn::module::Module for $module {
            fn collect_devices(&self, devices: ::burn::module::Devices) -> ::burn::module::Devices {
                $(let devices = ::burn::module::Module::collect_devices(&self.$part, devices);)+
                devices
            }

            fn fork(self, device: &::burn::tensor::Device) -> Self {
                Self { $($part: ::burn::module::Module::fork(self.$part, device)),+ }
            }

            fn to_device(self, device: &::burn::tensor::Device) -> Self {
                Self { $($part: ::burn::module::Module::to_device(self.$part, device)),+ }
            }

            fn train(self) -> Self {
                Self { $($part: ::burn::module::Module::train(self.$part)),+ }
            }

            fn valid(&self) -> Self {
                Self { $($part: ::burn::module::Module::valid(&self.$part)),+ }
            }

            fn materialize(self) -> Self {
                Self { $($part: ::burn::module::Module::materialize(self.$part)),+ }
            }

            fn visit<V: ::burn::module::ModuleVisitor>(&self, visitor: &mut V) {
                $(::burn::module::Module::visit(&self.$part, visitor);)+
            }

            fn map<M: ::burn::module::ModuleMapper>(self, mapper: &mut M) -> Self {
                Self { $($part: ::burn::module::Module::map(self.$part, mapper)),+ }
            }
        }

        impl ::burn::module::ModuleDisplay for $module {}

        impl ::burn::module::ModuleDisplayDefault for $module {
            fn content(&self, content: ::burn::module::Content) -> Option<::burn::module::Content> {
                content$(.add(stringify!($part), &self.$part))+.optional()
            }
        }
    };
}
