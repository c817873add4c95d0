from tests.unit.torch_impl.training import *
from torch_impl.training_command import main
import time

pytestmark = [quiet, pytest.mark.usefixtures("environment")]


def test_prof(records, tmp_path):
    print("threads", torch.get_num_threads(), torch.get_num_interop_threads(), os.environ["OMP_NUM_THREADS"])
    c = write_config(tmp_path / "b", records)
    for _ in range(3):
        t = time.time(), time.process_time()
        main(["fit", "--config", str(c)])
        print("RUN", time.time() - t[0], time.process_time() - t[1], torch.get_num_threads())
