//! The memory of a step. The optimiser replaces the weights one by one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::module::{Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{AllocationProperty, Bytes, DType, Device, Tensor, TensorData};
use idefics_train::{LossGradients, Trainer, TrainingConfig};

/// Memory of a weight that records when it is freed.
struct Buffer {
    bytes: Vec<u8>,
    is_freed: Arc<AtomicBool>,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.is_freed.store(true, Ordering::SeqCst);
    }
}

/// A part without parameters. When a mapper visits this part, it records whether the weight before it has been freed.
#[derive(Debug, Clone)]
struct Probe {
    is_freed: Arc<AtomicBool>,
    was_freed: Arc<AtomicBool>,
}

impl Module for Probe {
    fn collect_devices(&self, devices: Devices) -> Devices {
        devices
    }

    fn fork(self, _device: &Device) -> Self {
        self
    }

    fn to_device(self, _device: &Device) -> Self {
        self
    }

    fn train(self) -> Self {
        self
    }

    fn valid(&self) -> Self {
        self.clone()
    }

    fn materialize(self) -> Self {
        self
    }

    fn visit<V: ModuleVisitor>(&self, _visitor: &mut V) {}

    fn map<M: ModuleMapper>(self, _mapper: &mut M) -> Self {
        self.was_freed.store(self.is_freed.load(Ordering::SeqCst), Ordering::SeqCst);
        self
    }
}

impl ModuleDisplay for Probe {}

impl ModuleDisplayDefault for Probe {
    fn content(&self, content: Content) -> Option<Content> {
        content.optional()
    }
}

#[derive(Module, Debug)]
struct Two {
    first: Param<Tensor<1>>,
    probe: Probe,
    second: Param<Tensor<1>>,
}

#[test]
fn old_value_of_a_weight_is_freed_before_the_next_weight_is_updated() {
    let device = Device::flex().autodiff();
    let is_freed = Arc::new(AtomicBool::new(false));
    let bytes = (0..64).flat_map(|index| (index as f32).to_le_bytes()).collect();
    let buffer = bytes::Bytes::from_owner(Buffer { bytes, is_freed: is_freed.clone() });
    let data = Bytes::from_shared(buffer, AllocationProperty::File);
    let first = Tensor::from_data(TensorData::from_bytes(data, [64], DType::F32), (&device, DType::F32));
    assert!(!is_freed.load(Ordering::SeqCst), "the tensor uses the memory without a copy");
    let was_freed = Arc::new(AtomicBool::new(false));
    let module = Two {
        first: Param::from_tensor(first),
        probe: Probe { is_freed: is_freed.clone(), was_freed: was_freed.clone() },
        second: Param::from_tensor(Tensor::ones([64], &device)),
    };
    let mut trainer = Trainer::new(module, TrainingConfig::new(3)).unwrap();
    let report = trainer.step(&[()], |module: &Two, ()| {
        let loss = (module.first.val() * module.second.val()).sum();
        Ok(LossGradients::backward(&loss, 1, module))
    });
    assert!(report.unwrap().applied);
    assert!(was_freed.load(Ordering::SeqCst), "the first weight is freed before the mapper reaches the second");
}
