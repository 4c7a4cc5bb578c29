import numpy as np
import pytest
import tiny


@pytest.fixture(scope="session")
def bundle(data, tmp_path_factory):
    """A network that nobody trained, put on record: folder of the bundle, folder of the run."""
    import chestxray
    run = tmp_path_factory.mktemp("run")
    model = tiny.network("mixed_bfloat16")
    rng = np.random.default_rng(3)
    model.get_layer("conv").kernel.assign(rng.normal(0, 0.5, (3, 3, 1, 8)))
    model.get_layer("logit").kernel.assign(rng.normal(0, 3, (16, 1)))
    chestxray.record_model(model, data, "tiny", run, parameters={}, weights="random", training={"epochs": {}})
    return run / "saved_models" / "tiny-patient-s0", run
